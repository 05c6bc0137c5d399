"""Engines on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shoal_api.options import ModelOptions
from shoal_engine import gpu_memory
from shoal_engine.backend import StepDefaults
from shoal_engine.cuda_runner import CudaRunner
from shoal_engine.cuda_sampler import CudaSampler
from shoal_engine.gpu_wakeup import wait_for_gpu
from shoal_engine.kernel_cache import KernelBuild
from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.gpu import kind_of
from shoal_engine.kernels.invariant import InvariantKernels
from shoal_engine.kernels.triton_sampling import SamplingSpace
from shoal_engine.limits import SchedulerLimits
from shoal_engine.memory_layout import CacheLayout
from shoal_engine.models.llama import Llama
from shoal_engine.placement import Placement
from shoal_engine.runner import Runner
from shoal_engine.sampler import Sampler
from shoal_engine.step_shapes import decode_rows

if TYPE_CHECKING:
    from shoal_engine.engine import Engine


class CudaBackend:
    """One GPU; the host runs one step ahead of what it has seen of the results."""

    # 8192 tokens keep the products compute-bound and a step of an 8B model below 200 ms.
    defaults = StepDefaults(max_num_seqs=512, max_num_batched_tokens=8192)
    steps_ahead = 1

    def __init__(self, options: ModelOptions, device: torch.device, dtype: torch.dtype) -> None:
        torch.set_grad_enabled(False)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._deterministic = options.deterministic
        self._kernels = InvariantKernels() if options.deterministic else CudaKernels()
        self._build: KernelBuild | None = None
        if device.type == "cuda":
            self._build = KernelBuild.begin(options, kind_of(device))
        self._results: SamplingSpace | None = None
        cache_dtype = torch.float8_e4m3fn if options.kv_cache_dtype == "fp8" else dtype
        self.place = Placement(device, dtype, self._kernels, cache_dtype)

    def finish_kernels(self, progress: Callable[[], None]) -> None:
        if self._build is not None:
            self._build.wait(progress)

    def cache_budget_bytes(
        self, options: ModelOptions, model: Llama, layout: CacheLayout, limits: SchedulerLimits
    ) -> int:
        wait_for_gpu()  # what its libraries take counts
        found = gpu_memory.measure(model, layout, limits, self.place)
        return found.cache_budget(options.gpu_memory_utilization)

    def runner(self, model: Llama, cache: Tensor, layout: CacheLayout, limits: SchedulerLimits) -> Runner:
        return CudaRunner(
            model,
            self._kernels,
            cache,
            layout,
            limits.max_num_seqs,
            limits.max_model_len,
            self._space(model.config.vocab_size, limits),
            fuse=not self._deterministic,
        )

    def sampler(self, vocab_size: int, seed: int, limits: SchedulerLimits) -> Sampler:
        return CudaSampler(vocab_size, self.place.device, seed, self._space(vocab_size, limits))

    def _space(self, vocab_size: int, limits: SchedulerLimits) -> SamplingSpace:
        """The one that runner and sampler share."""
        if self._results is None:
            rows = decode_rows(limits.max_num_seqs)
            self._results = SamplingSpace(rows, vocab_size, self.place.device, invariant=self._deterministic)
        return self._results

    def warm_up(self, engine: Engine) -> None:
        """Record graphs of some batch sizes up to 256; others follow in idle time, or once they were needed a few times."""
        if isinstance(engine.runner, CudaRunner):
            engine.runner.record_graphs(min(256, engine.scheduler.limits.max_num_seqs))
