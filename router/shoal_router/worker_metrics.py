"""One /metrics for all workers of a router: each leaves its text where the others find it. Counts nothing itself.

A scrape reaches any of the workers, so that one answers for all, with a label `worker` on every sample; what the others
say is at most a second old.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_SAMPLE: Final = re.compile(rb"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{?)")


class WorkerMetrics:
    """The texts of all workers, files in `directory`; this worker's has `number`."""

    def __init__(self, directory: Path, number: int) -> None:
        self._directory = directory
        self._number = number
        (directory / f"{number}.prom").unlink(missing_ok=True)  # the last word of one that died

    def put(self, text: bytes) -> None:
        """Leave this worker's text for the others."""
        draft = self._directory / f"{self._number}.draft"
        draft.write_bytes(text)
        draft.replace(self._directory / f"{self._number}.prom")

    def merged(self, own: bytes) -> bytes:
        """The text of all workers, `own` for this one."""
        texts = {self._number: own}
        for path in self._directory.glob("*.prom"):
            # One that was listed and is gone was of a worker that died: its successor took it away just now.
            with contextlib.suppress(FileNotFoundError):
                texts.setdefault(int(path.stem), path.read_bytes())
        return merge(texts)


def merge(texts: Mapping[int, bytes]) -> bytes:
    """One Prometheus text of several, each family once, samples labelled with the number of their worker."""
    families: dict[bytes, list[bytes]] = {}
    for number, text in sorted(texts.items()):
        family: list[bytes] = []
        told = True
        for line in text.splitlines():
            if line.startswith(b"# HELP "):
                name = line.split(b" ", 3)[2]
                told = name in families
                family = families.setdefault(name, [])
            if not line.startswith(b"#"):
                family.append(_labelled(line, number))
            elif not told:
                family.append(line)
    return b"".join([line + b"\n" for family in families.values() for line in family])


def _labelled(sample: bytes, number: int) -> bytes:
    found = _SAMPLE.match(sample)
    assert found is not None
    rest = sample[found.end() :]
    return b'%b{worker="%d"%b%b' % (found[1], number, b"," if found[2] else b"}", rest)
