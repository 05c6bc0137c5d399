"""A build artifact: a model's folder that also holds the compiled kernels of its start, as `shoal build` makes it.

It may be moved and read by many, also where it cannot be written: what it lacks goes to Triton's own cache. Without its
manifest, which is written last, a folder is a model like any other.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import triton
from triton import knobs
from triton.runtime.cache import FileCacheManager

MANIFEST = "shoal-build.json"
_KERNELS = "kernels"
_GROUP = "__grp__"  # Triton's own prefix of the file that lists a kernel's files
_NEEDED = (".cubin", ".json", ".so")  # of what compiling leaves; the rest is for who reads compilers' output


def kernels_of(model: Path) -> Path | None:
    """The folder of an artifact's kernels; None for a model that is none."""
    return model / _KERNELS if (model / MANIFEST).is_file() else None


def use_kernels(folder: Path) -> None:
    """Look there first, from now on and in this process."""
    _PackedCache.packed = folder
    _PackedCache.modules = _modules(folder)
    knobs.cache.manager_class = _PackedCache


def write_artifact(model: Path, folder: Path, cache: Path, manifest: Mapping[str, Any]) -> None:
    """Put the files of `model`, a folder or one file, and the kernels in `cache` into `folder`, which is empty or absent.

    Weights are linked where the file system can, so that they take no room twice. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(model.iterdir()) if model.is_dir() else [model]:
        if file.is_file() and file.name != MANIFEST:
            _link(file.resolve(), folder / file.name)
    for file in sorted(cache.rglob("*")):
        if file.is_file() and (file.name.startswith((_GROUP, "shoal-")) or file.suffix in _NEEDED):
            packed = folder / _KERNELS / file.relative_to(cache)
            packed.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, packed)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _modules(kernels: Path) -> dict[str, Path]:
    """Compiled C by name, of which there is one, if this release of Triton built it.

    Its key in the cache holds where the driver lies on the machine that built it.
    """
    manifest = kernels.parent / MANIFEST
    if not manifest.is_file() or json.loads(manifest.read_text()).get("triton") != triton.__version__:
        return {}
    files = list(kernels.rglob("*.so"))
    counts = Counter(file.name for file in files)
    return {file.name: file for file in files if counts[file.name] == 1}


class _PackedCache(FileCacheManager):  # type: ignore[misc]  # Triton has no annotations
    """Triton's cache with an artifact in front of it, which is only read."""

    packed: ClassVar[Path]
    modules: ClassVar[Mapping[str, Path]]

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        super().__init__(key, override, dump)
        self._folder = self.packed / key

    def get_file(self, filename: str) -> str | None:
        file = self._folder / filename
        if not file.is_file() and filename in self.modules:
            file = self.modules[filename]
        found: str | None = str(file) if file.is_file() else super().get_file(filename)
        return found

    def get_group(self, filename: str) -> dict[str, str] | None:
        group = self._folder / (_GROUP + filename)
        if not group.is_file():
            other: dict[str, str] | None = super().get_group(filename)
            return other
        names = json.loads(group.read_text())[
            "child_paths"
        ]  # whose paths are those of the machine that built it
        return {name: str(self._folder / name) for name in names if (self._folder / name).is_file()}
