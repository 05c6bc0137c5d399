"""Engines on the host's processor."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from shoal_api.options import ModelOptions
from shoal_engine.backend import StepDefaults
from shoal_engine.errors import ModelLoadError
from shoal_engine.kernels.cpu import cpu_kernels
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.limits import SchedulerLimits
from shoal_engine.memory_layout import CacheLayout, host_budget_bytes
from shoal_engine.models.llama import Llama
from shoal_engine.placement import Placement
from shoal_engine.runner import Runner
from shoal_engine.sampler import Sampler

if TYPE_CHECKING:
    from shoal_engine.engine import Engine


class CpuBackend:
    """As many threads as asked for, or all cores that the process may use."""

    # A step of 512 tokens takes a sixth of a second with a small model: longer ones would stall the streams that are
    # being decoded, and the matrix products are as efficient as they get at this size.
    defaults = StepDefaults(max_num_seqs=64, max_num_batched_tokens=512)
    steps_ahead = 0

    def __init__(self, options: ModelOptions, dtype: torch.dtype) -> None:
        torch.set_num_threads(options.num_threads or len(os.sched_getaffinity(0)))
        torch.set_grad_enabled(False)
        kernels = cpu_kernels()
        if options.deterministic and isinstance(kernels, ReferenceKernels):
            raise ModelLoadError(
                "--deterministic needs the compiled CPU kernels: install a C compiler, or leave it out"
            )
        self.place = Placement(torch.device("cpu"), dtype, kernels, dtype)

    def finish_kernels(self, progress: Callable[[], None]) -> None:
        """They are compiled when they are loaded."""

    def cache_budget_bytes(
        self, options: ModelOptions, model: Llama, layout: CacheLayout, limits: SchedulerLimits
    ) -> int:
        return host_budget_bytes(psutil.virtual_memory().available)

    def runner(self, model: Llama, cache: Tensor, layout: CacheLayout, limits: SchedulerLimits) -> Runner:
        return Runner(model, cache, layout, limits.max_num_seqs, limits.max_model_len)

    def sampler(self, vocab_size: int, seed: int, limits: SchedulerLimits) -> Sampler:
        return Sampler(vocab_size, self.place.device, seed)

    def warm_up(self, engine: Engine) -> None:
        """The first token has paid for all there is (oneDNN, page faults)."""
