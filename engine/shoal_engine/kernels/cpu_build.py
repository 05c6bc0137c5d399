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
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "c"
COMPILERS = ("cc", "gcc", "clang")
COMPILE_TIMEOUT_S = 120.0


class BuildError(Exception):
    """There is no usable compiler or OpenMP runtime; the text says which, and what to install."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build one library: `compile` makes an object of each source, `link` a library of all objects."""

    compile: tuple[str, ...]
    link: tuple[str, ...]
    sources: tuple[Path, ...]
    libraries: tuple[str, ...]

    def fingerprint(self) -> str:
        """Equal for equal sources, flags and processors only."""
        digest = hashlib.sha256(repr(self).encode())
        for header in sorted(SOURCES.iterdir()):
            digest.update(header.read_bytes())
        digest.update("\n".join(_processor()).encode())
        return digest.hexdigest()[:16]


@functools.cache
def load_library(architecture: str = "native") -> ctypes.CDLL:
    """The kernels compiled for a processor; built, in 3 s, when this machine has not built them yet. Raises BuildError."""
    recipe = _recipe(architecture, loaded_openmp())
    name = f"kernels-{recipe.fingerprint()}.so"
    try:
        path = built(_cache_folder(), name, recipe)
    except OSError:  # a read-only or full home; a private folder serves this process
        path = built(Path(tempfile.mkdtemp(prefix="shoal-")), name, recipe)
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


def built(folder: Path, name: str, recipe: Recipe) -> Path:
    """folder/name, made by `recipe` unless it is there. Raises BuildError, or OSError when folder is unusable."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not path.exists():
        with _locked(folder / f"{name}.lock"):
            if not path.exists():
                _build(recipe, path)
    return path


def _recipe(architecture: str, openmp: Path) -> Recipe:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), *COMPILERS))), None)
    if compiler is None:
        raise BuildError(
            "no C compiler found; install one (Debian, Ubuntu: `apt-get install gcc libc6-dev`) or set CC"
        )
    option = "-march" if platform.machine() in ("x86_64", "AMD64") else "-mcpu"
    flags = (
        "-std=gnu11",
        "-O3",
        f"{option}={architecture}",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fPIC",
    )
    sources = tuple(sorted(SOURCES.glob("*.c")))
    return Recipe((compiler, *flags, "-c"), (compiler, "-shared"), sources, (str(openmp), "-lm"))


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


def _build(recipe: Recipe, path: Path) -> None:
    """All sources at once, then the library; it appears under its name only when it is whole."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in recipe.sources]
        _run_all(
            [
                [*recipe.compile, str(source), "-o", out]
                for source, out in zip(recipe.sources, objects, strict=True)
            ]
        )
        library = Path(folder) / path.name
        _run_all([[*recipe.link, *objects, *recipe.libraries, "-o", str(library)]])
        library.replace(path)


def _run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run compilers side by side. Raises BuildError with what the first one that failed had to say."""
    compiler = commands[0][0]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for run in runs:
            _, errors = run.communicate(timeout=COMPILE_TIMEOUT_S)
            if run.returncode != 0:
                raise BuildError(f"{compiler} failed:\n{errors[-2000:]}")
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{compiler} did not finish within {COMPILE_TIMEOUT_S:.0f} s") from error
    finally:
        for run in runs:
            run.kill()
            run.wait()
