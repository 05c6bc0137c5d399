"""Where replicas are: the only file that learns addresses.

Here a static list; a Kubernetes watch has the same face. A source is level-triggered: it calls `changed` with
everything that should exist, at the start and at every change. It says nothing about health: an address may
be down and come up later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    """Where one replica listens. `name` is what `x-shoal-replica` shows and rendezvous hashing uses."""

    name: str
    host: str
    port: int

    @classmethod
    def from_url(cls, url: str, name: str | None = None) -> Address:
        """`http://host:port`; the name defaults to the URL. Raises ValueError that says what is wrong."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ValueError(f"endpoint {url!r} is not of the form http://HOST:PORT")
        return cls(name or url.rstrip("/"), parts.hostname, parts.port or 80)

    @property
    def authority(self) -> str:
        """Value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


Changed = Callable[[Iterable[Address]], None]


class Discovery(Protocol):
    """A source of addresses; `start` returns when it is watching, `stop` when it no longer calls back."""

    async def start(self, changed: Changed) -> None: ...

    async def stop(self) -> None: ...


class StaticDiscovery:
    """A list given once, or set anew at run time by whoever runs the router in its own process."""

    def __init__(self, addresses: Iterable[Address]) -> None:
        self._addresses = tuple(addresses)
        self._changed: Changed | None = None

    async def start(self, changed: Changed) -> None:
        self._changed = changed
        changed(self._addresses)

    async def stop(self) -> None:
        self._changed = None

    def set(self, addresses: Iterable[Address]) -> None:
        """Replace the list."""
        self._addresses = tuple(addresses)
        if self._changed is not None:
            self._changed(self._addresses)
