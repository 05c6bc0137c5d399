"""Answers that need no replica: health, readiness, metrics, version, the merged models, the debug view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from urllib.parse import unquote

import msgspec

from shoal_router import debug_page, decisions, replies
from shoal_router.discovery import Discovery
from shoal_router.endpoints import EndpointSet
from shoal_router.errors import NoReplicaReady, RouterDraining
from shoal_router.failure_metrics import failure_lines
from shoal_router.key_metrics import key_lines
from shoal_router.listener import Listener
from shoal_router.metrics import Metrics
from shoal_router.metrics_text import gauge, render
from shoal_router.models import ModelTable
from shoal_router.prefix_index import PrefixIndex
from shoal_router.proxy import Proxy
from shoal_router.request import Request
from shoal_router.routes import MODEL_PREFIX
from shoal_router.standing import State
from shoal_router.viewer import Viewer
from shoal_router.worker_metrics import WorkerMetrics


@dataclass(frozen=True, slots=True)
class Answer:
    body: bytes
    content_type: bytes = replies.JSON
    headers: tuple[replies.Header, ...] = ()


@dataclass(frozen=True, slots=True)
class Local:
    """The parts of a router that can be looked at from outside."""

    endpoints: EndpointSet
    models: ModelTable
    index: PrefixIndex
    metrics: Metrics
    listener: Listener
    proxy: Proxy
    discovery: Discovery
    viewer: Viewer
    workers: WorkerMetrics | None = None  # of the processes that share the port

    def tell_workers(self) -> None:
        """Let the other workers know what this one counts."""
        if self.workers is not None:
            self.workers.put(self._metrics_text())

    def answer(self, request: Request) -> Answer:
        """The answer to a GET of one of the router's own paths. Raises RouterError."""
        path = request.path
        if path.startswith(MODEL_PREFIX):
            return Answer(self.models.entry(unquote(path.removeprefix(MODEL_PREFIX))))
        answers: dict[str, Callable[[], Answer]] = {
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/version": self._version,
            "/v1/models": self._models,
            "/debug": lambda: self._debug(request),
        }
        return answers[path]()

    def _health(self) -> Answer:
        return Answer(b'{"status":"ok"}')

    def _ready(self) -> Answer:
        if self.listener.draining:
            raise RouterDraining("this router is shutting down; send requests to another one")
        ready = sum(endpoint.state is not State.ABSENT for endpoint in self.endpoints)
        if self.discovery.synced is False:
            raise NoReplicaReady("the cluster has not been listed yet; try again in a moment")
        # In a cluster a router without replicas has work to do: it answers for models that have none.
        if not ready and self.discovery.synced is None:
            raise NoReplicaReady(
                f"none of {len(self.endpoints)} replicas is ready; wait for one to load its model"
            )
        return Answer(b'{"status":"ready","replicas":%d}' % ready)

    def _metrics(self) -> Answer:
        text = self._metrics_text()
        return Answer(text if self.workers is None else self.workers.merged(text), replies.PROMETHEUS)

    def _metrics_text(self) -> bytes:
        held_bytes = {"": self.proxy.admission.held_bytes}
        return render(
            self.metrics,
            endpoints=self.endpoints,
            index=self.index,
            connections=len(self.listener.connections),
            active=len(self.proxy.active),
            more=[
                *gauge("held_bytes", "Bytes of the requests that wait here.", held_bytes),
                *key_lines(self.proxy.gate),
                *failure_lines(self.proxy),
            ],
            held={model: len(queue) for model, queue in self.proxy.admission.queues.items()},
        )

    def _version(self) -> Answer:
        return Answer(msgspec.json.encode({"version": version("shoal")}))

    def _models(self) -> Answer:
        return Answer(self.models.listing())

    def _debug(self, request: Request) -> Answer:
        if wants_json(request):
            return Answer(msgspec.json.encode(self.viewer.view(decisions.KEPT)))
        page = debug_page.page(self.viewer.view(debug_page.SHOWN_CHOICES))
        return Answer(page, debug_page.CONTENT_TYPE, debug_page.HEADERS)


def wants_json(request: Request) -> bool:
    """Whether /debug is asked for by a program: it says `?format=json`, or accepts JSON and no HTML."""
    if b"format=json" in request.target.partition(b"?")[2].split(b"&"):
        return True
    accept = b",".join(value for name, value in request.headers if name.lower() == b"accept").lower()
    return b"application/json" in accept and b"text/html" not in accept
