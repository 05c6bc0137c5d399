"""The kernels that an engine launches, found by walking through its steps on a meta device. Needs no GPU and no memory.

Not how they are compiled (`kernels.triton_builds`), nor where they are kept (`kernel_cache`). What is missing here is
compiled when it is first launched: a slower step, never a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from shoal_api.options import ModelOptions
from shoal_engine import gpu_memory
from shoal_engine.checkpoint import open_checkpoint
from shoal_engine.config import ModelConfig, read_config
from shoal_engine.cuda_backend import CudaBackend
from shoal_engine.cuda_runner import CudaRunner
from shoal_engine.kernels.gpu import GpuKind, stand_in_for
from shoal_engine.kernels.interface import AttentionBatch
from shoal_engine.kernels.triton_builds import Build, foreseen
from shoal_engine.kernels.triton_sampling import RowParameters, SamplingSpace, sample
from shoal_engine.limits import SchedulerLimits
from shoal_engine.loading import build_model, layout_of, limits_of
from shoal_engine.memory_layout import CacheLayout
from shoal_engine.model_path import local_path
from shoal_engine.models.llama import Llama
from shoal_engine.placement import Placement, choose_dtype
from shoal_engine.runner import empty_cache
from shoal_engine.shapes_only import ShapesOnly
from shoal_engine.step_shapes import Shape, common_shapes

_META = torch.device("meta")
_BLOCKS = 64  # of a cache without memory
# Steps with long prompts are launched, not recorded: (decodes in front, tokens of each prompt).
_LAUNCHED = ((0, (1100,)), (0, (2100,)), (1, (3000, 100)), (40, (3000, 100)), (300, (1000, 1000)))


def kernels_of_start(options: ModelOptions, kind: GpuKind) -> list[Build]:
    """For a GPU of `kind`. Leaves this process unable to launch kernels: see `foreseen`."""
    # A fork has none of the threads that torch began before it, and would wait for them.
    torch.set_num_threads(1)
    stand_in_for(kind)
    with ShapesOnly():
        return foreseen(kind, partial(_walk, options))


def _walk(options: ModelOptions) -> None:
    path = local_path(options.model)
    checkpoint = None if options.load_format == "dummy" else open_checkpoint(path)
    whole = read_config(path) if checkpoint is None else checkpoint.config
    config = _shortened(whole)
    backend = CudaBackend(options, _META, choose_dtype(options, torch.device("cuda")))
    place, limits = backend.place, limits_of(options, config, backend.defaults)
    model = build_model(options, config, checkpoint, place)
    model.config = whole  # how long its steps take decides which of them are recorded
    layout = layout_of(options, config, place)
    gpu_memory.largest_step(model, layout, limits, place)
    cache = empty_cache(layout, _BLOCKS, place)
    runner = backend.runner(model, cache, layout, limits)
    assert isinstance(runner, CudaRunner)
    shapes = common_shapes(whole, limits.max_num_seqs)
    runner.walk(shapes)
    for decodes, prompts in _LAUNCHED:
        if decodes + sum(prompts) <= limits.max_num_batched_tokens:
            _launched_step(model, cache, layout, place, decodes, prompts)
    _sample(model, limits, shapes, options.deterministic)


def _shortened(config: ModelConfig) -> ModelConfig:
    """With as many layers as it takes to have one of each kind."""
    windows = [config.window(layer) for layer in range(config.num_layers)]
    kinds = set(windows)
    return replace(
        config, num_layers=next(n for n in range(1, len(windows) + 1) if set(windows[:n]) == kinds)
    )


def _launched_step(
    model: Llama,
    cache: torch.Tensor,
    layout: CacheLayout,
    place: Placement,
    decodes: int,
    prompts: tuple[int, ...],
) -> None:
    counts = [1] * decodes + list(prompts)
    tokens = sum(counts)
    empty: Callable[..., torch.Tensor] = partial(torch.empty, device=_META)
    batch = AttentionBatch(
        query_start=empty(len(counts) + 1, dtype=torch.int32),
        context_lens=empty(len(counts), dtype=torch.int32),
        tables=empty((len(counts), 100), dtype=torch.int32),
        slots=empty(tokens, dtype=torch.int64),
        positions=empty(tokens, dtype=torch.int64),
        num_decodes=decodes,
        max_query_len=max(counts),
        max_context_len=max(counts),
        block_tokens=layout.block_tokens,
        chunks=tuple((count, count) for count in prompts),
    )
    model(empty(tokens, dtype=torch.int64), batch, cache)


def _sample(model: Llama, limits: SchedulerLimits, shapes: list[Shape], invariant: bool) -> None:
    most, vocab = limits.max_num_seqs, model.config.vocab_size
    space = SamplingSpace(most, vocab, _META, invariant=invariant)

    def column(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(most, dtype=dtype, device=_META)

    asked = RowParameters(
        temperature=column(torch.float32), min_p=column(torch.float32), top_k=column(torch.int32),
        top_p=column(torch.float64), keys=column(torch.int64), positions=column(torch.int64),
    )  # fmt: skip
    hidden = torch.empty((most, model.config.hidden_size), dtype=model.embedding.dtype, device=_META)
    for rows in sorted({1, *(shape.num_decodes for shape in shapes)} - {0}):
        logits = model.logits(hidden[:rows])
        for truncated in (False, True):
            sample(logits, asked, space, truncated)
