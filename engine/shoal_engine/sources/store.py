"""The cache directory: one folder per uri and revision, complete or not there at all. Knows no network.

Three names per model: NAME (complete), .NAME.partial (being loaded, kept for the next try) and .NAME.lock. The lock
is flock's, so that the kernel frees it however its holder ends; the file itself stays and means nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal_api.model_cache import cache_path


def stored(root: Path, uri: str, revision: str | None, load: Callable[[Path], None]) -> Path:
    """The model's folder; `load` fills it first when it is not there. Waits while another process loads the same.

    What `load` raises comes through, and its folder stays as it was left. OSError when `root` cannot be written.
    """
    name = cache_path(uri, revision)
    ready = root / name
    if ready.is_dir():
        return ready
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f".{name}.lock"):
        if ready.is_dir():  # the other process was quicker
            return ready
        partial = root / f".{name}.partial"
        partial.mkdir(exist_ok=True)
        load(partial)
        _sync(partial)
        partial.rename(ready)
        _sync(root)
    return ready


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(folder: Path) -> None:
    """Names on disk before anybody relies on them: a power cut must not leave a complete folder without files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
