"""Which version of each object the bytes in a folder belong to, kept beside them while they are loaded.

Only for stores that tell a version (an ETag) but no hash: there the bytes themselves cannot say whose they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

RECORD: Final = ".versions.json"


def recorded(folder: Path) -> dict[str, str]:
    """Version by name, as written last; empty if there is none, or none that can be read."""
    try:
        found = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(name): str(version) for name, version in found.items()} if isinstance(found, dict) else {}


def record(folder: Path, versions: Mapping[str, str]) -> None:
    """On disk when it returns, whole or not at all. OSError when it cannot be written."""
    path, draft = folder / RECORD, folder / f"{RECORD}.new"
    with draft.open("w") as out:
        json.dump(versions, out)
        out.flush()
        os.fsync(out.fileno())
    draft.rename(path)


def forget(folder: Path) -> None:
    (folder / RECORD).unlink(missing_ok=True)
