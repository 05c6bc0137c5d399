"""Looks at a router for /debug: makes one View of what its parts keep anyway, when somebody asks. Changes nothing."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from itertools import islice
from math import inf

from shoal_router.debug_view import Choice, Event, Model, Option, Queue, Replica, View
from shoal_router.decisions import Decision
from shoal_router.endpoints import Endpoint, EndpointSet
from shoal_router.listener import Listener
from shoal_router.metrics import Metrics
from shoal_router.models import ModelTable
from shoal_router.prefix_index import PrefixIndex
from shoal_router.proxy import Proxy
from shoal_router.standing import State


class Viewer:
    """Looks at the parts of one router."""

    def __init__(
        self,
        endpoints: EndpointSet,
        models: ModelTable,
        index: PrefixIndex,
        metrics: Metrics,
        listener: Listener,
        proxy: Proxy,
    ) -> None:
        self._endpoints = endpoints
        self._models = models
        self._index = index
        self._metrics = metrics
        self._listener = listener
        self._proxy = proxy
        self._began_at = time.time()

    def view(self, most_choices: int) -> View:
        """Everything as it is now, with at most so many of the last choices: they take the most time."""
        endpoints, metrics, proxy = list(self._endpoints), self._metrics, self._proxy
        tallies = [endpoint.tally for endpoint in endpoints]
        now = time.time()
        return View(
            at=now,
            version=version("shoal"),
            process=os.getpid(),
            up_s=now - self._began_at,
            draining=self._listener.draining,
            requests=sum(metrics.requests.values()),
            active_requests=len(proxy.active),
            held_requests=sum(map(len, proxy.admission.queues.values())),
            held_bytes=proxy.admission.held_bytes,
            client_connections=len(self._listener.connections),
            index_blocks=len(self._index),
            prompt_tokens=sum(tally.prompt_tokens for tally in tallies),
            predicted_cached_tokens=sum(tally.predicted_tokens for tally in tallies),
            cached_tokens=sum(tally.cached_tokens for tally in tallies),
            retries=sum(metrics.retries.values()),
            resumes=metrics.resumes["resumed"],
            errors=sum(metrics.errors.values()),
            quarantined=len(proxy.quarantine),
            replicas=[self._replica(endpoint) for endpoint in endpoints],
            models=[self._model(name, endpoints) for name in self._models.known()],
            queues=self._queues(),
            choices=[choice_of(each) for each in islice(reversed(proxy.placer.decisions), most_choices)],
            events=self._events(),
        )

    def _replica(self, endpoint: Endpoint) -> Replica:
        report, tally = endpoint.report, endpoint.tally
        return Replica(
            name=endpoint.name,
            address=endpoint.address.authority,
            state=endpoint.state.value,
            cordoned=endpoint.cordoned,
            models=[name for name, _ in report.models],
            linked=endpoint.linked,
            in_flight=endpoint.in_flight,
            in_flight_from_others=endpoint.elsewhere,
            seats=_limit(endpoint.seats),
            ceiling=_limit(endpoint.ceiling),
            queued_tokens=round(endpoint.queued_tokens + endpoint.queued_elsewhere),
            running=report.running,
            waiting=report.waiting,
            kv_usage=report.kv_usage,
            kv_tokens=report.kv_tokens,
            index_blocks=self._index.size(endpoint.slot),
            requests=tally.requests,
            faults=tally.faults,
            ejections=tally.ejections,
            prompt_tokens=tally.prompt_tokens,
            predicted_cached_tokens=tally.predicted_tokens,
            cached_tokens=tally.cached_tokens,
            contradictions=tally.contradictions,
            updates=tally.updates,
            gaps=tally.gaps,
        )

    def _model(self, name: str, endpoints: Iterable[Endpoint]) -> Model:
        serving = [endpoint for endpoint in endpoints if endpoint.serves(name)]
        placer, queue = self._proxy.placer, self._proxy.admission.queues.get(name)
        prices = placer.prices(name)
        return Model(
            name=name,
            ready=sum(endpoint.state is State.HEALTHY for endpoint in serving),
            replicas=len(serving),
            held=0 if queue is None else len(queue),
            bytes_per_token=placer.bytes_per_token(name),
            in_flight_tokens=prices.in_flight_tokens,
            seat_tokens=prices.seat_tokens,
        )

    def _queues(self) -> list[Queue]:
        queues = []
        for model, line in self._proxy.admission.queues.items():
            claims = line.queue.claims.values()
            counts = Counter((claim.tenant, claim.band) for claim in claims)
            tokens: Counter[tuple[str, object]] = Counter()
            for claim in claims:
                tokens[claim.tenant, claim.band] += round(claim.tokens)
            for (tenant, band), count in counts.items():
                queues.append(Queue(model, tenant, band.name.lower(), count, tokens[tenant, band]))
        return queues

    def _events(self) -> list[Event]:
        errors = [Event(at, error.code, error.message) for at, error in self._metrics.recent_errors]
        moves = [
            Event(at, state.value, f"{name} was {before.value}")
            for at, name, before, state in self._endpoints.recent_moves
        ]
        return sorted(errors + moves, key=lambda event: event.at, reverse=True)


def choice_of(decision: Decision) -> Choice:
    """One decision, spelt out."""
    options = [
        Option(
            endpoint.name,
            round(cost),
            round(candidate.cached),
            round(candidate.queued),
            round(candidate.in_flight),
            at == decision.chosen,
        )
        for at, (endpoint, candidate, cost) in enumerate(
            zip(decision.endpoints, decision.candidates, decision.costs, strict=True)
        )
    ]
    usage = decision.usage
    return Choice(
        at=decision.at,
        request_id=decision.request_id.decode("latin-1"),
        model=decision.model,
        prompt_tokens=usage.prompt_tokens if usage is not None else round(decision.tokens),
        replica=decision.endpoints[decision.chosen].name,
        status=decision.status,
        outcome=str(decision.outcome),
        cached_tokens=usage.cached_tokens if usage is not None else None,
        options=sorted(options, key=lambda option: option.cost),
    )


def _limit(value: float) -> int:
    return 0 if value == inf else int(value)
