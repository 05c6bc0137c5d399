"""A model and its KV cache on one device: runs the chunks of a plan. Knows nothing of queues, sampling or sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from shoal_engine.batch import BatchBuilder
from shoal_engine.checkpoint import Checkpoint
from shoal_engine.config import ModelConfig
from shoal_engine.kernels.interface import Kernels
from shoal_engine.memory_layout import CacheLayout, dense_copy_fits
from shoal_engine.models import model_class
from shoal_engine.models.llama import Llama
from shoal_engine.plan import Plan
from shoal_engine.weights import RandomWeights, Weights


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs, in which type, with which kernels."""

    device: torch.device
    dtype: torch.dtype
    kernels: Kernels


class Runner:
    def __init__(
        self,
        model: Llama,
        layout: CacheLayout,
        num_blocks: int,
        max_num_seqs: int,
        max_model_len: int,
        place: Placement,
    ):
        self.model = model
        self.vocab_size = model.config.vocab_size
        self.cache = _empty_cache(layout, num_blocks, place)
        self._builder = BatchBuilder(max_num_seqs, layout.blocks_for(max_model_len), layout.block_tokens)

    def run(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Run every chunk: hidden states [T, H] of all tokens in plan order, and rows [S] of those to sample from."""
        self._builder.release(plan.preempted)
        batch = self._builder.build(plan)
        return self.model(batch.token_ids, batch.attention, self.cache), batch.sample_rows

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [S, H] -> [S, vocab] in the model's dtype."""
        return self.model.logits(hidden)

    def release(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended."""
        self._builder.release(request_ids)


def _empty_cache(layout: CacheLayout, num_blocks: int, place: Placement) -> Tensor:
    """[layers, num_blocks, 2, kv_heads, block_tokens, head_dim] of zeros."""
    shape = (layout.num_layers, num_blocks, 2, layout.num_kv_heads, layout.block_tokens, layout.head_dim)
    if place.device.type != "cpu":
        return torch.zeros(shape, dtype=place.dtype, device=place.device)
    # numpy asks the kernel for zero pages, which take memory only as blocks are used; torch would write them all now.
    zeros = np.zeros(layout.block_bytes * num_blocks, dtype=np.uint8)
    return torch.from_numpy(zeros).view(place.dtype).view(shape)


def load_model(
    config: ModelConfig,
    checkpoint: Checkpoint,
    place: Placement,
    max_model_len: int,
    progress: Callable[[int], None],
) -> Llama:
    """Build the model from a checkpoint's tensors. Raises ModelLoadError."""
    keep_dense = dense_copy_fits(checkpoint.total_bytes, psutil.virtual_memory().available)
    weights = Weights(checkpoint, place.dtype, place.device, progress, keep_dense)
    return model_class(config.architecture)(config, weights, place.kernels, max_model_len)


def random_model(config: ModelConfig, place: Placement, max_model_len: int, seed: int) -> Llama:
    """The same model with random weights, for `--load-format dummy`."""
    weights = RandomWeights(place.dtype, place.device, seed)
    return model_class(config.architecture)(config, weights, place.kernels, max_model_len)
