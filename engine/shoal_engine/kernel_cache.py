"""Which starts have all their kernels in Triton's cache on disk, and a process beside a start that compiles those it lacks.

A mark is an empty file whose name stands for everything that decides which kernels a start launches and how they are
compiled. A mark that is wrong, because somebody emptied the cache, costs time only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from triton import knobs
from triton.runtime.cache import triton_key

from shoal_api.options import ModelOptions
from shoal_engine.artifact import kernels_of, use_kernels
from shoal_engine.errors import ModelLoadError
from shoal_engine.forks import fork, usable_cores
from shoal_engine.gpu_wakeup import wait_for_gpu
from shoal_engine.kernels.gpu import GpuKind
from shoal_engine.kernels.triton_builds import compile_all
from shoal_engine.model_path import local_path

log = logging.getLogger(__name__)

_DECISIVE = {
    "load_format", "dtype", "quantization", "kv_cache_dtype", "deterministic", "block_size", "max_model_len",
    "max_num_seqs", "max_num_batched_tokens",
}  # fmt: skip
_PATIENCE_S = 120.0  # compiling one kernel after the other takes less
_LOOK_S = 0.05


def mark_of(options: ModelOptions, kind: GpuKind) -> Path:
    """Of a start with these options on a GPU of `kind`, in the cache that is in use."""
    digest = hashlib.sha256()
    for part in (
        json.dumps(options.model_dump(mode="json", include=_DECISIVE), sort_keys=True),
        f"{kind} torch {torch.__version__} triton {triton.__version__}",
    ):
        digest.update(part.encode())
    digest.update(_config_bytes(options.model))
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return Path(knobs.cache.dir) / f"shoal-{digest.hexdigest()}"


def _config_bytes(model: str) -> bytes:
    """What says of which architecture and size a model is. Raises ModelLoadError where there is no model."""
    path = local_path(model)
    config = path / "config.json"
    if config.is_file():
        return config.read_bytes()
    with path.open("rb") as file:  # the head of a .gguf, as far as it holds the architecture
        return file.read(1 << 16)


class KernelBuild:
    """The process that compiles what a start will launch."""

    def __init__(self, process: int, mark: Path) -> None:
        self._process = process
        self._mark = mark

    @classmethod
    def begin(cls, options: ModelOptions, kind: GpuKind) -> KernelBuild | None:
        """None where the cache has everything already. The process needs no GPU and touches none."""
        try:
            mark = mark_of(options, kind)
        except (ModelLoadError, OSError):
            return None  # loading the model says it better
        packed = kernels_of(local_path(options.model))
        if packed is not None:
            use_kernels(packed)
        if mark.exists() or (packed is not None and (packed / mark.name).exists()):
            return None
        wait_for_gpu()
        return cls(fork(lambda: build(options, kind, mark), alone=True), mark)

    def wait(self, progress: Callable[[], None]) -> None:
        """Until it has ended, however it ends: what it has not compiled is compiled when it is launched."""
        started = time.monotonic()
        while os.waitpid(self._process, os.WNOHANG) == (0, 0):
            if time.monotonic() - started > _PATIENCE_S:
                os.kill(self._process, signal.SIGKILL)
                os.waitpid(self._process, 0)
                break
            progress()
            time.sleep(_LOOK_S)
        if not self._mark.exists():
            log.warning("kernels could not all be compiled ahead; they are compiled as they are needed")


def build(options: ModelOptions, kind: GpuKind, mark: Path) -> int:
    """Compile and leave the mark; 1 if a kernel failed. This process can launch nothing afterwards."""
    from shoal_engine.start_kernels import kernels_of_start

    started = time.monotonic()
    kernels = kernels_of_start(options, kind)
    triton_key()  # kept in this process, and so computed once for all that it forks
    failed = compile_all(kernels, kind, usable_cores())
    log.info("%d kernels are in the cache after %.1f s", len(kernels), time.monotonic() - started)
    if not failed:
        mark.touch()
    return int(failed > 0)
