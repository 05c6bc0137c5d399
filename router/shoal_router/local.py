"""Answers that need no replica: health, readiness, metrics, version, the merged models, the debug view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from urllib.parse import unquote

import msgspec

from shoal_router import replies
from shoal_router.discovery import Discovery
from shoal_router.endpoints import Endpoint, EndpointSet
from shoal_router.errors import NoReplicaReady, RouterDraining
from shoal_router.failure_metrics import failure_lines
from shoal_router.key_metrics import key_lines
from shoal_router.listener import Listener
from shoal_router.metrics import Metrics, gauge
from shoal_router.models import ModelTable
from shoal_router.prefix_index import PrefixIndex
from shoal_router.proxy import Proxy
from shoal_router.routes import MODEL_PREFIX
from shoal_router.standing import State


@dataclass(frozen=True, slots=True)
class Answer:
    body: bytes
    content_type: bytes = replies.JSON


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

    def answer(self, path: str) -> Answer:
        """The answer to GET `path`. Raises RouterError."""
        if path.startswith(MODEL_PREFIX):
            return Answer(self.models.entry(unquote(path.removeprefix(MODEL_PREFIX))))
        answers: dict[str, Callable[[], Answer]] = {
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/version": self._version,
            "/v1/models": self._models,
            "/debug": self._debug,
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
        held_bytes = {"": self.proxy.admission.held_bytes}
        text = self.metrics.render(
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
        return Answer(text, replies.PROMETHEUS)

    def _version(self) -> Answer:
        return Answer(msgspec.json.encode({"version": version("shoal")}))

    def _models(self) -> Answer:
        return Answer(self.models.listing())

    def _debug(self) -> Answer:
        return Answer(
            msgspec.json.encode(
                {
                    "models": list(self.models.known()),
                    "active_requests": len(self.proxy.active),
                    "client_connections": len(self.listener.connections),
                    "index_blocks": len(self.index),
                    "draining": self.listener.draining,
                    "replicas": [self._describe(endpoint) for endpoint in self.endpoints],
                }
            )
        )

    def _describe(self, endpoint: Endpoint) -> dict[str, object]:
        report, tally = endpoint.report, endpoint.tally
        return {
            "name": endpoint.name,
            "address": endpoint.address.authority,
            "state": endpoint.state.value,
            "cordoned": endpoint.cordoned,
            "models": [name for name, _ in report.models],
            "linked": endpoint.linked,
            "in_flight": endpoint.in_flight,
            "in_flight_from_others": endpoint.elsewhere,
            "queued_tokens": round(endpoint.queued_tokens),
            "index_blocks": self.index.size(endpoint.slot),
            "kv_tokens": report.kv_tokens,
            "requests": tally.requests,
            "faults": tally.faults,
            "ejections": tally.ejections,
            "prompt_tokens": tally.prompt_tokens,
            "predicted_cached_tokens": tally.predicted_tokens,
            "cached_tokens": tally.cached_tokens,
        }
