"""Which models there are and who serves them: all replicas' /v1/models and the deployments together. Sends nothing.

A model is known as long as a deployment names it or a replica that served it is listed, ready or not: a client
of a model that is restarting gets 503 and comes back, not 404.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from shoal_router.discovery import Deployment
from shoal_router.endpoints import Endpoint
from shoal_router.errors import BadRequest, ModelNotFound, NoReplicaReady, ReplicasFull
from shoal_router.routing import Routing
from shoal_router.standing import State

_ROUTABLE: Final = (State.HEALTHY, State.HALF_OPEN)


class ModelTable:
    """Model -> replicas, computed when first asked after a change. `routing` is for models without a deployment."""

    def __init__(self, endpoints: Iterable[Endpoint], routing: Routing | None = None) -> None:
        self._endpoints = endpoints
        self._default = routing or Routing()
        self._routable: dict[str, tuple[Endpoint, ...]] = {}
        self._known: dict[str, None] | None = None
        self._owners: dict[str, Deployment] = {}
        self._routing: dict[str, Routing] = {}

    def set_deployments(self, deployments: Iterable[Deployment]) -> None:
        """Those there are now; no two of them have a model in common."""
        self._owners = {model: deployment for deployment in deployments for model in deployment.models}
        self._routing = {model: deployment.routing for model, deployment in self._owners.items()}
        self.changed()

    def changed(self) -> None:
        """A standing, a report or the membership has changed."""
        self._routable.clear()
        self._known = None

    def known(self) -> dict[str, None]:
        """Ids of all known models, sorted, as keys."""
        if self._known is None:
            names = {name for endpoint in self._endpoints for name, _ in endpoint.report.models}
            names.update(self._owners)
            self._known = dict.fromkeys(sorted(names))
        return self._known

    def owner(self, model: str) -> Deployment | None:
        """The deployment that the name belongs to, if there is one."""
        return self._owners.get(model)

    def family(self, model: str) -> tuple[str, ...]:
        """The names that are served by the same replicas as far as is known."""
        owner = self._owners.get(model)
        return (model,) if owner is None else owner.models

    def routing(self, model: str) -> Routing:
        return self._routing.get(model, self._default)

    def full(self, model: str) -> ReplicasFull:
        """What is told when every routable replica of a model has all the requests that it takes."""
        after_s = self.routing(model).retry_after_s
        return ReplicasFull(f"every replica of '{model}' is full; try again later", retry_after_s=after_s)

    def listing(self) -> bytes:
        """The merged /v1/models reply: each model once, as the first replica that lists it describes it."""
        entries: dict[str, msgspec.Raw] = {}
        for endpoint in self._endpoints:
            for name, raw in endpoint.report.models:
                if self._may_serve(endpoint, name):
                    entries.setdefault(name, msgspec.Raw(raw))
        for name in self.known():
            if name not in entries:
                entries[name] = msgspec.Raw(_describe(name))
        return msgspec.json.encode({"object": "list", "data": list(entries.values())})

    def entry(self, model: str) -> bytes:
        """The JSON object of one model. Raises ModelNotFound."""
        for endpoint in self._endpoints:
            for name, raw in endpoint.report.models:
                if name == model and self._may_serve(endpoint, name):
                    return raw
        if model in self.known():
            return _describe(model)
        raise self._not_found(model)

    def routable(self, model: str) -> tuple[Endpoint, ...]:
        """Replicas that may be given a request for `model`, at least one.

        When more than half of those that can be reached are ejected, the ejected ones as well, and when there is
        nobody else, those that cannot be reached: a wrong ejection must not take a model down, nor crowd the rest.
        Raises ModelNotFound or NoReplicaReady.
        """
        endpoints = self._routable.get(model)
        if endpoints is None:
            endpoints = self._routable[model] = self._find(model)
        return endpoints

    def has_room(self, model: str) -> bool:
        """Whether a replica may be given one more request for `model`. Raises ModelNotFound or NoReplicaReady."""
        look_ahead = self.routing(model).look_ahead
        return any(endpoint.takes_more(look_ahead) for endpoint in self.routable(model))

    def running(self, model: str) -> int:
        """Requests that its replicas have from this router."""
        return sum(endpoint.in_flight for endpoint in self._routable.get(model, ()))

    def resolve(self, model: str | None) -> str:
        """The model that a request means; it may leave the name out when there is only one.

        Raises RouterError.
        """
        known = self.known()
        if model is not None and model in known:
            return model
        if model is not None or not known:
            raise self._not_found(model or "")
        if len(known) > 1:
            raise BadRequest(f"name a model: {', '.join(known)}", param="model", code="missing_model")
        return next(iter(known))

    def _find(self, model: str) -> tuple[Endpoint, ...]:
        serving = [each for each in self._endpoints if each.serves(model) and self._may_serve(each, model)]
        if not serving:
            if model in self.known():
                raise NoReplicaReady(f"no replica of '{model}' has loaded it yet; try later")
            raise self._not_found(model)
        serving = [endpoint for endpoint in serving if not endpoint.cordoned]
        ready = [endpoint for endpoint in serving if endpoint.state in _ROUTABLE]
        ejected = [endpoint for endpoint in serving if endpoint.state is State.SUSPECT]
        doubtful = [endpoint for endpoint in ejected if not endpoint.standing.unreachable]
        if len(doubtful) > len(ready):
            ready += doubtful
        left = ready or ejected
        if not left:
            raise NoReplicaReady(f"no replica of '{model}' is ready: loading, draining or down; try later")
        return tuple(left)

    def _may_serve(self, endpoint: Endpoint, model: str) -> bool:
        """A name belongs to one deployment, whatever pods of others say that they serve."""
        owner, address = self._owners.get(model), endpoint.address
        return owner is None or (owner.namespace, owner.name) == (address.namespace, address.deployment)

    def _not_found(self, model: str) -> ModelNotFound | NoReplicaReady:
        known = self.known()
        if not known:
            return NoReplicaReady("no replica has reported its models yet; try again in a moment")
        shown = model if len(model) <= 100 else model[:100] + "..."
        return ModelNotFound(
            f"there is no model '{shown}' here; there are: {', '.join(known)}", param="model"
        )


def _describe(model: str) -> bytes:
    """A model that no replica has described yet."""
    return msgspec.json.encode({"id": model, "object": "model", "created": 0, "owned_by": "shoal"})
