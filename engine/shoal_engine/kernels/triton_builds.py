"""Triton kernels compiled before anything launches them, many at once. Knows no models.

`foreseen` walks through code that launches kernels, with meta tensors, and notes each kernel's specialisation in place of
compiling it. `compile_all` compiles such notes into Triton's cache on disk; no GPU is needed for either.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from shoal_engine.forks import fork
from shoal_engine.kernels.gpu import GpuKind

log = logging.getLogger(__name__)

_TURN = struct.Struct("<H")  # one kernel's number in the pipe that workers take their turns from


@dataclass(frozen=True, slots=True)
class Build:
    """One specialisation of a kernel, as Triton describes it."""

    kernel: Any
    signature: dict[str, Any]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]

    @property
    def weight(self) -> int:
        """Grows with the time that compiling takes: the length of the source, of all that it calls included."""
        return _source_length(self.kernel, set())


class _StandIn:
    """In place of Triton's driver where none of its kernels runs."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return -1  # of which no kernel has been compiled in this process, as may be of a real one

    def get_current_stream(self, device: int) -> int:
        return 0


def target_of(kind: GpuKind) -> GPUTarget:
    major, minor = kind.capability
    return GPUTarget("cuda", 10 * major + minor, 32)


def foreseen(kind: GpuKind, walk: Callable[[], None]) -> list[Build]:
    """What the launches of `walk` compile, each once. Its process can launch nothing afterwards: call it in a fork."""
    found: dict[tuple[Any, str], Build] = {}

    def note(*, fn: Any, **told: Any) -> bool:
        job = told["compile"]
        options = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json.loads(job["specialization_data"])["options"].items()
        }
        build = Build(fn.jit_function, job["signature"], job["constants"], job["configs"][0], options)
        found.setdefault((fn.jit_function, str(job["key"])), build)
        return True  # Triton then neither compiles nor launches

    driver.set_active(_StandIn(target_of(kind)))
    knobs.runtime.jit_cache_hook = note
    walk()
    knobs.runtime.jit_cache_hook = None
    return sorted(found.values(), key=lambda build: -build.weight)


def compile_all(builds: Sequence[Build], kind: GpuKind, processes: int) -> int:
    """Compile what Triton's cache lacks, in so many forks of this process; returns how many forks saw a failure.

    A kernel that fails here is compiled, or fails, when it is launched.
    """
    jobs: list[tuple[str, Callable[[], None]]] = [
        *((str(build.kernel), partial(_compile, build, kind)) for build in builds),
        ("what loads kernels", _compile_utilities),
    ]
    reader, writer = os.pipe()
    os.write(writer, b"".join(_TURN.pack(number) for number in range(len(jobs))))
    os.close(writer)
    workers = [fork(lambda: _work(reader, jobs)) for _ in range(min(processes, len(jobs)))]
    os.close(reader)
    return sum(os.waitpid(worker, 0)[1] != 0 for worker in workers)


def _work(reader: int, jobs: Sequence[tuple[str, Callable[[], None]]]) -> int:
    """Do those whose turn this process takes; 1 if any failed."""
    failed = 0
    while turn := os.read(reader, _TURN.size):
        name, job = jobs[_TURN.unpack(turn)[0]]
        try:
            job()
        except Exception as error:
            failed = 1
            log.warning("%s was not compiled ahead: %s", name, error)
    return failed


def _source_length(kernel: Any, counted: set[int]) -> int:
    """Each function once, though it is compiled wherever it is called."""
    counted.add(id(kernel))
    named = [kernel.fn.__globals__.get(name) for name in kernel.fn.__code__.co_names]
    called = {id(one): one for one in named if hasattr(one, "src") and id(one) not in counted}
    return len(kernel.src) + sum(_source_length(one, counted) for one in called.values())


def _compile(build: Build, kind: GpuKind) -> None:
    from triton.backends.nvidia import driver as nvidia

    source = build.kernel.ASTSource(build.kernel, build.signature, build.constants, build.attributes)
    compiled = triton.compile(source, target=target_of(kind), options=build.options)
    # Up to version 3.6 Triton compiles a C function for each signature as well, which calls the kernel.
    if hasattr(nvidia, "make_launcher"):
        _compile_c(lambda: nvidia.CudaLauncher(compiled.src, compiled.metadata))


def _compile_utilities() -> None:
    """What Triton loads kernels with, in C; without it a start would want a C compiler, and half a second."""
    from triton.backends.nvidia import driver as nvidia

    _compile_c(nvidia.CudaUtils)


def _compile_c(load: Callable[[], object]) -> None:
    """load: compiles a library and loads it, or fails to load it where there is no driver: it is in the cache then."""
    try:
        with suppress(ImportError):
            load()
    except AssertionError:  # there is no CUDA driver here to link with: any library of its name does
        knobs.nvidia.libcuda_path = str(_stub_driver())
        with suppress(ImportError):
            load()


def _stub_driver() -> Path:
    """The folder of an empty libcuda.so.1, beside the kernels."""
    folder = Path(knobs.cache.dir) / "stub"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{os.getpid()}.so"
    command = [os.environ.get("CC", "cc"), "-shared", "-x", "c", os.devnull, "-o", str(made)]
    subprocess.run(command, check=True)
    made.replace(folder / "libcuda.so.1")
    return folder
