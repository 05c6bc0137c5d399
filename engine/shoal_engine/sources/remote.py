"""What every store of models offers: a list of files, and their bytes from any offset. No I/O here."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hashlib import _Hash

WEIGHTS = (".safetensors", ".gguf")
TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")


class FetchError(Exception):
    """The model cannot be had as asked for; trying again does not help. The text says what to do."""


class BrokenTransfer(Exception):
    """Bytes stopped coming; the rest may come on another try. `wait_s` is what the server asked for, if it did."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """`name` has no folder. `size` in bytes. `digest` is ALGORITHM:HEX with sha256 or git (git's blob sha1).

    `version` names this very content where the store tells no digest: other bytes would have another one.
    """

    name: str
    size: int
    digest: str | None
    address: str
    version: str | None = None

    def new_hash(self) -> _Hash:
        """The hash that `digest` is of, before the first byte of the file."""
        if self.digest and self.digest.startswith("git:"):
            return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        return hashlib.sha256()

    def matches(self, hashed: _Hash) -> bool:
        """True as well when the store told no digest."""
        return self.digest is None or self.digest.partition(":")[2] == hashed.hexdigest()


class Source(Protocol):
    """A store of models. Both methods raise FetchError, and BrokenTransfer for what may pass."""

    def files(self) -> tuple[RemoteFile, ...]:
        """The files that make the model."""

    def read(self, file: RemoteFile, offset: int) -> Generator[bytes, None, None]:
        """The bytes from `offset` on, to the end of the file."""


def wanted(names: set[str]) -> set[str]:
    """Of the names in a model's folder, those that an engine reads: one kind of weights, and small texts."""
    weights = {name for name in names if name.endswith(WEIGHTS) and not name.startswith(".")}
    tensors = {name for name in weights if name.endswith(".safetensors")}
    sharded_or_whole = {name for name in tensors if name.startswith("model")}
    texts = {name for name in names if name.endswith(TEXTS) and not name.startswith(".")}
    return (sharded_or_whole or tensors or weights) | texts
