"""Who may ask: keys of clients, and how a presented one is found. Pure; key_file.py reads them, key_watch.py reloads them.

No key is kept in clear, only its SHA-256. The way from a header to its key is a look-up by a hash that no client can
predict, and no comparison stops early at the first byte that differs: the time taken tells nothing about a key. Headers
that were right once are remembered, so that a request costs a look-up and no SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from math import inf
from time import time
from typing import Final

from shoal_router.errors import Unauthorized

PLAIN: Final = "--api-key"  # the name of every key of the command line; a file has no such names
MAX_REMEMBERED: Final = 4096  # right headers; more only when a key is sent in many spellings


class Priority(IntEnum):
    """Bands of the admission queue, first served first; fair_queue.py has their order and floors."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key may ask of one router process; 0 sets no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0  # prompt and answer
    max_in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Key:
    """One key. Its tenant shares a place in the admission queue and, by `cache_salt`, cached prompts with nobody else."""

    name: str
    digest: bytes  # SHA-256
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    limits: Limits = Limits()
    cache_salt: str = ""  # empty: cached prompts are shared with all who have none
    expires_s: float = inf  # Unix time

    @classmethod
    def plain(cls, secret: bytes) -> Key:
        """A key of `--api-key`: of no tenant, without limits."""
        return cls(PLAIN, digest_of(secret))


def digest_of(secret: bytes) -> bytes:
    """What is kept of a key."""
    return sha256(secret).digest()


class Keyring:
    """All keys that are valid now. `asks` is false for a router that wants none."""

    def __init__(
        self, keys: Iterable[Key] = (), *, asks: bool = False, unix_s: Callable[[], float] = time
    ) -> None:
        self.asks = asks
        self.keys = tuple(keys)
        self._unix_s = unix_s
        self._by_digest = {key.digest: key for key in self.keys}
        self._remembered: dict[bytes, Key] = {}

    def find(self, authorization: bytes) -> Key:
        """The key in an Authorization header. Raises Unauthorized."""
        key = self._remembered.get(authorization)
        if key is None:
            key = self._look_up(authorization)
        if key.expires_s != inf and self._unix_s() >= key.expires_s:
            raise Unauthorized(f"the key '{key.name}' has expired; ask for a new one")
        return key

    def _look_up(self, authorization: bytes) -> Key:
        scheme, _, secret = authorization.partition(b" ")
        key = self._by_digest.get(digest_of(secret.strip(b" \t")))
        if key is None or scheme.lower() != b"bearer":
            raise Unauthorized("send a valid key as 'Authorization: Bearer KEY'")
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[authorization] = key
        return key
