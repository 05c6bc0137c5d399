"""What loading and running an engine needs to know of a kind of device, as one interface; `backend_for` chooses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from shoal_api.options import ModelOptions
from shoal_engine.limits import SchedulerLimits
from shoal_engine.memory_layout import CacheLayout
from shoal_engine.models.llama import Llama
from shoal_engine.placement import Placement, choose_device, choose_dtype, refuse_unsupported
from shoal_engine.runner import Runner
from shoal_engine.sampler import Sampler

if TYPE_CHECKING:
    from shoal_engine.engine import Engine


@dataclass(frozen=True, slots=True)
class StepDefaults:
    """Sizes of a step where the options give none."""

    max_num_seqs: int
    max_num_batched_tokens: int


class Backend(Protocol):
    """steps_ahead: steps that may be under way before the results of the oldest are read."""

    place: Placement
    defaults: StepDefaults
    steps_ahead: int

    def finish_kernels(self, progress: Callable[[], None]) -> None:
        """Wait for kernels that are still being compiled. `progress` is called now and then."""

    def cache_budget_bytes(
        self, options: ModelOptions, model: Llama, layout: CacheLayout, limits: SchedulerLimits
    ) -> int:
        """What keys and values may take when no option says it."""

    def runner(self, model: Llama, cache: Tensor, layout: CacheLayout, limits: SchedulerLimits) -> Runner: ...

    def sampler(self, vocab_size: int, seed: int, limits: SchedulerLimits) -> Sampler: ...

    def warm_up(self, engine: Engine) -> None:
        """Pay first-use costs before a client waits for them; a first token has been generated."""


def backend_for(options: ModelOptions) -> Backend:
    """Raises ModelLoadError: the device is not there, or an option is not supported on it."""
    device = choose_device(options.device)
    refuse_unsupported(options, device)
    dtype = choose_dtype(options, device)
    if device.type == "cuda":
        from shoal_engine.cuda_backend import CudaBackend  # needs Triton, which a CPU does without

        return CudaBackend(options, device, dtype)
    from shoal_engine.cpu_backend import CpuBackend

    return CpuBackend(options, dtype)
