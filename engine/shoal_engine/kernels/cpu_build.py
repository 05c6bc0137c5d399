"""Compile the C kernels on first use and load them. Knows compilers and caches; knows nothing of tensors.

One library per source text, flags and processor lies in `$SHOAL_CACHE_DIR` or `~/.cache/shoal`. A lock and an atomic
rename let replicas start together; `-march=native` is safe because the processor is part of the name.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).parent / "c"
COMPILERS = ("cc", "gcc", "clang")
COMPILE_TIMEOUT_S = 120.0


class BuildError(Exception):
    """There is no usable compiler or OpenMP runtime; the text says which, and what to install."""


@functools.cache
def load_library(architecture: str = "native") -> ctypes.CDLL:
    """The kernels compiled for a processor, built when this machine has not built them yet (2 s). Raises BuildError."""
    command = _command(architecture, loaded_openmp())
    name = f"kernels-{_fingerprint(command)}.so"
    try:
        path = built(_cache_folder(), name, command)
    except OSError:  # a read-only or full home; a private folder serves this process
        path = built(Path(tempfile.mkdtemp(prefix="shoal-")), name, command)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"the compiled kernels cannot be loaded: {error}") from error


def loaded_openmp() -> Path:
    """The OpenMP library this process already has: linking another one would start a second pool of threads."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    for line in lines:
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith(("libgomp", "libomp", "libiomp")):
            return path
    raise BuildError("torch has loaded no OpenMP library that the kernels could share")


def built(folder: Path, name: str, command: Sequence[str]) -> Path:
    """folder/name, compiled with `command` unless it is there. Raises BuildError, or OSError when folder is unusable."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not path.exists():
        with _locked(folder / f"{name}.lock"):
            if not path.exists():
                _compile(command, path)
    return path


def _command(architecture: str, openmp: Path) -> list[str]:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), *COMPILERS))), None)
    if compiler is None:
        raise BuildError(
            "no C compiler found; install one (Debian, Ubuntu: `apt-get install gcc libc6-dev`) or set CC"
        )
    option = "-march" if platform.machine() in ("x86_64", "AMD64") else "-mcpu"
    flags = [
        "-std=gnu11",
        "-O3",
        f"{option}={architecture}",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fPIC",
        "-shared",
    ]
    return [compiler, *flags, *map(str, sorted(SOURCES.glob("*.c"))), str(openmp), "-lm"]


def _fingerprint(command: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join(command).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    digest.update("\n".join(_processor()).encode())
    return digest.hexdigest()[:16]


def _processor() -> Iterator[str]:
    """What -march=native depends on: the model and feature lines of one core."""
    yield platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        first_core = cpuinfo.read_text().split("\n\n")[0]
        yield from (
            line
            for line in first_core.splitlines()
            if line.startswith(("model name", "flags", "Features", "CPU part"))
        )


def _cache_folder() -> Path:
    chosen = os.environ.get("SHOAL_CACHE_DIR")
    return Path(chosen) if chosen else Path.home() / ".cache" / "shoal"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(command: Sequence[str], path: Path) -> None:
    partial = path.with_suffix(".partial")
    try:
        done = subprocess.run(
            [*command, "-o", str(partial)],
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} did not finish within {COMPILE_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise BuildError(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    partial.replace(path)
