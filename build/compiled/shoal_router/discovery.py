"""Where replicas are: what a source of addresses looks like, and a static list.

kubernetes_discovery.py is the other source and the only file of the router that knows Kubernetes. A source is
level-triggered: it calls `changed` with everything that should exist, at the start and at every change. It says
nothing about health: an address may be down and come up later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from shoal_router.routing import Routing


@dataclass(frozen=True, slots=True)
class Address:
    """Where one replica listens. `name` is what `x-shoal-replica` shows; in a cluster it is the pod's."""

    name: str
    host: str
    port: int
    uid: str = ""
    namespace: str = ""
    deployment: str = ""
    cordoned: bool = False  # gets no new requests; those that it has end by themselves

    @classmethod
    def from_url(cls, url: str, name: str | None = None) -> Address:
        """`http://host:port`; the name defaults to the URL. Raises ValueError that says what is wrong."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ValueError(f"endpoint {url!r} is not of the form http://HOST:PORT")
        return cls(name or url.rstrip("/"), parts.hostname, parts.port or 80)

    @property
    def key(self) -> str:
        """Different for each replica, the same in every router: rendezvous hashing uses it."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def authority(self) -> str:
        """Value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A group of replicas that is known also while it has none; `models` begins with its base model."""

    namespace: str
    name: str
    models: tuple[str, ...]
    hold_s: float = 0.0  # how long a request waits for a first replica; 0 refuses it at once
    max_held: int = 0
    max_num_seqs: int = 0  # requests that one replica is to compute at once; 0 leaves it to the engine
    routing: Routing = field(default_factory=Routing)
    created: str = ""  # RFC 3339, so that text order is that of time


Changed = Callable[[Iterable[Address]], None]


class Discovery(Protocol):
    """A source of addresses; `start` returns when it is watching, `stop` when it no longer calls back."""

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """What is served, with or without replicas; a change of it calls `changed` too."""
        ...

    @property
    def synced(self) -> bool | None:
        """Whether it has seen everything once; None when there is nothing to wait for."""
        ...

    async def start(self, changed: Changed) -> None: ...

    async def stop(self) -> None: ...


class StaticDiscovery:
    """A list given once, or set anew at run time by whoever runs the router in its own process."""

    deployments: tuple[Deployment, ...] = ()
    synced: bool | None = None

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
