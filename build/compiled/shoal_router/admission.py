"""Requests that wait in the router: for a first replica, or for one with room. Sends nothing.

One line per model; who is next in it is fair_queue.py's, who may join it queue_bounds.py's. Models take turns. A line
goes on when a replica may be given its first request: after a standing or a report has changed, or a request has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from shoal_router.demand import Demand
from shoal_router.drain_rate import DrainRate
from shoal_router.errors import NoReplicaReady, ReplicasFull, RouterDraining, RouterError
from shoal_router.fair_queue import Claim
from shoal_router.metrics import Metrics
from shoal_router.models import ModelTable
from shoal_router.queue_bounds import Bounds, Full, Waiting, why_full
from shoal_router.retry_after import after_estimate
from shoal_router.waiting_line import WaitingLine


class Waiter(Protocol):
    """A request that can go on or be refused. `waits_until_s` is 0 until it first waits."""

    started_s: float
    waits_until_s: float

    @property
    def claim(self) -> Claim: ...

    def attempt(self) -> None: ...

    def refuse(self, error: RouterError) -> None: ...


class Admission:
    """All waiting requests. `queues`: by model; a model without one is absent. `chance` draws from [0, 1)."""

    def __init__(
        self,
        models: ModelTable,
        demand: Demand,
        metrics: Metrics,
        max_bytes: int,
        *,
        now: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.queues: dict[str, WaitingLine[Waiter]] = {}
        self.held_bytes = 0
        self._whys: dict[Waiter, RouterError] = {}
        self._rates: dict[str, DrainRate] = {}
        self._models = models
        self._demand = demand
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._now = now
        self._chance = chance
        self._releasing = self._closed = False

    def wait(self, waiter: Waiter, model: str, why: RouterError) -> None:
        """Let a request wait because of `why`, or refuse it at once."""
        now, again = self._now(), waiter.waits_until_s > 0
        until_s, bounds = self._terms(waiter, model, why, now)
        if bounds is None or until_s <= now:
            waiter.refuse(why)
            return
        claim = waiter.claim
        # Who has waited before goes in front of its tenant's others: it came before them all.
        if not again and (full := self._why_full(model, bounds, claim, now)) is not None:
            waiter.refuse(self._refusal(why, model, full, claim, now))
            return
        if self._closed and not isinstance(why, ReplicasFull):
            waiter.refuse(_ending())
            return
        waiter.waits_until_s = until_s
        line = self.queues.get(model)
        if line is None:
            line = self.queues[model] = WaitingLine(self._rates.setdefault(model, DrainRate()))
        line.put(waiter, claim, now, back=again)
        self._whys[waiter] = why
        self.held_bytes += claim.size
        self._demand.held(model, 1)

    def line_up(self, waiter: Waiter, model: str) -> None:
        """Let a request wait behind those that do already, or refuse it at once."""
        try:
            self._models.routable(model)
        except RouterError as error:
            self.wait(waiter, model, error)
        else:
            self.wait(waiter, model, self._models.full(model))

    def drop(self, waiter: Waiter, model: str) -> bool:
        """It waits no longer. Returns whether it did."""
        line = self.queues.get(model)
        claim = line.remove(waiter, self._now()) if line is not None else None
        if claim is None:
            return False
        self._left(waiter, claim, model)
        return True

    def changed(self) -> None:
        """Perhaps somebody may go on."""
        if self.queues and not self._releasing:
            self._releasing = True  # in a turn of its own: who reports the change is not done with it yet
            asyncio.get_running_loop().call_soon(self._release)

    def sweep(self) -> None:
        """Refuse who has waited for too long. What engines report may have made room for the others."""
        now = self._now()
        for model, line in list(self.queues.items()):
            for waiter, claim in list(line.queue.claims.items()):
                if now >= waiter.waits_until_s:
                    why = self._whys[waiter]
                    if isinstance(why, ReplicasFull):
                        self._refuse(waiter, model, self._refusal(why, model, Full.LATE, claim, now))
                    else:
                        late = f"no replica of '{model}' became ready in time; try later"
                        self._refuse(waiter, model, NoReplicaReady(late))
        self.changed()

    def close(self) -> None:
        """The router ends: who waits for a first replica goes to another router at once. Nobody knows when it comes.

        Who waits for room is soon served, as what is being computed is.
        """
        self._closed = True
        for model, line in list(self.queues.items()):
            for waiter in list(line.queue):
                if not isinstance(self._whys[waiter], ReplicasFull):
                    self._refuse(waiter, model, _ending())

    def _terms(self, waiter: Waiter, model: str, why: RouterError, now: float) -> tuple[float, Bounds | None]:
        """Until when a request may wait and within which bounds; no bounds if it may not at all."""
        if isinstance(why, ReplicasFull):
            routing = self._models.routing(model)
            bounds = Bounds(routing.max_queued, self._max_bytes, routing.queue_s)
            return waiter.waits_until_s or now + routing.queue_s, bounds
        owner = self._models.owner(model)
        if isinstance(why, NoReplicaReady) and owner is not None and owner.hold_s > 0:
            until_s = max(waiter.waits_until_s, waiter.started_s + owner.hold_s)
            return until_s, Bounds(owner.max_held, self._max_bytes, None)
        return 0.0, None

    def _why_full(self, model: str, bounds: Bounds, claim: Claim, now: float) -> Full | None:
        line = self.queues.get(model)
        own_count, own_size = line.queue.of_tenant(claim) if line is not None else (0, 0)
        waiting = Waiting(
            self._demand.of(self._models.family(model))[1],
            self.held_bytes,
            own_count,
            own_size,
            self._models.running(model),
            line.expected_wait_s(claim, now) if line is not None else None,
        )
        return why_full(waiting, bounds, claim)

    def _refusal(self, why: RouterError, model: str, full: Full, claim: Claim, now: float) -> RouterError:
        """What a request is told that may not wait, or no longer."""
        self._metrics.queue_refusals[full] += 1
        if not isinstance(why, ReplicasFull):
            return why
        most_s = self._models.routing(model).queue_s
        line = self.queues.get(model)
        expected_s = line.expected_wait_s(claim, now) if line is not None else None
        after_s = after_estimate(most_s if expected_s is None else expected_s, self._chance())
        return ReplicasFull(f"{why.message} ({full.value}); try again in {after_s} s", retry_after_s=after_s)

    def _release(self) -> None:
        self._releasing = False
        models = list(self.queues)
        while models:
            models = [model for model in models if self._admit(model)]

    def _admit(self, model: str) -> bool:
        """Let the next of a line go on if there is room for it. Returns whether one more may try."""
        try:
            room = self._models.has_room(model)
        except NoReplicaReady:
            return False
        except RouterError as error:
            self._refuse_all(model, error)
            return False
        line = self.queues.get(model)
        if not room or line is None:
            return False
        now = self._now()
        waiter, claim = line.take(now)
        self._left(waiter, claim, model)
        self._metrics.queue_wait.observe(now - waiter.started_s)
        waiter.attempt()
        line = self.queues.pop(model, None)
        if line is None:
            return False
        self.queues[model] = line  # the last in turn, next time
        return waiter not in line.queue

    def _left(self, waiter: Waiter, claim: Claim, model: str) -> None:
        del self._whys[waiter]
        self.held_bytes -= claim.size
        self._demand.held(model, -1)
        if not self.queues[model]:
            del self.queues[model]

    def _refuse_all(self, model: str, error: RouterError) -> None:
        line = self.queues.get(model)
        for waiter in list(line.queue) if line is not None else ():
            self._refuse(waiter, model, error)

    def _refuse(self, waiter: Waiter, model: str, error: RouterError) -> None:
        if self.drop(waiter, model):
            waiter.refuse(error)


def _ending() -> RouterDraining:
    return RouterDraining("this router is shutting down and has not begun the request; send it again")
