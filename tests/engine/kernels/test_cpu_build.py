"""Building the CPU kernels: once per machine, whole or not at all, and with an answer when it cannot be done."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shoal_engine.kernels import cpu, cpu_build
from shoal_engine.kernels.cpu_build import BuildError, Recipe
from shoal_engine.kernels.reference import ReferenceKernels


def recipe(script: str, folder: Path) -> Recipe:
    """A shell script in the place of the compiler; its first argument is the source, the third the output."""
    source = folder / "kernel.c"
    source.write_text("int answer(void) { return 42; }")
    return Recipe(("sh", "-c", script, "sh"), ("sh", "-c", 'echo linked > "$3"', "sh"), (source,), ())


def test_replicas_that_start_together_compile_once(tmp_path: Path) -> None:
    compile_slowly = recipe(f'echo x >> {tmp_path / "log"}; sleep 0.2; echo compiled > "$3"', tmp_path)

    def build(_: int) -> Path:
        return cpu_build.built(tmp_path / "cache", "kernels-test.so", compile_slowly)

    with ThreadPoolExecutor(3) as replicas:
        paths = set(replicas.map(build, range(3)))
    assert [path.read_text() for path in paths] == ["linked\n"]
    assert (tmp_path / "log").read_text() == "x\n"


def test_a_failed_compilation_leaves_nothing_behind_and_tells_why(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="unknown type name"):
        cpu_build.built(
            tmp_path / "cache", "kernels-test.so", recipe("echo unknown type name >&2; exit 1", tmp_path)
        )
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["kernels-test.so.lock"]


def test_another_processor_or_flag_is_another_library() -> None:
    openmp = cpu_build.loaded_openmp()
    fingerprints = {
        cpu_build._recipe(architecture, openmp).fingerprint()
        for architecture in ("native", "x86-64", "x86-64-v3")
    }
    assert len(fingerprints) == 3


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path))
    assert cpu_build._cache_folder() == tmp_path


def test_without_a_compiler_the_twins_run_and_one_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    cpu_build.load_library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no C compiler found; install one"):
            assert isinstance(cpu.cpu_kernels(), ReferenceKernels)
    finally:
        cpu_build.load_library.cache_clear()
