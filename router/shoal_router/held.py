"""Requests that wait for a first replica, because their deployment wakes up when somebody asks. Sends nothing.

A request waits at most its deployment's hold_s; all go on as soon as a replica may be given one of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shoal_router.demand import Demand
from shoal_router.errors import NoReplicaReady, RouterError
from shoal_router.models import ModelTable


class Waiter(Protocol):
    """A request that can go on or be refused."""

    def attempt(self) -> None: ...

    def refuse(self, error: RouterError) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    model: str
    until_s: float


class Held:
    """All waiting requests, the longest waiting first."""

    def __init__(self, models: ModelTable, demand: Demand, now: Callable[[], float]) -> None:
        self._models = models
        self._demand = demand
        self._now = now
        self._places: dict[Waiter, Place] = {}
        self._releasing = False

    def hold(self, waiter: Waiter, model: str) -> bool:
        """Let a request wait; False when its deployment does not wake by itself or too many wait already."""
        for deployment in self._models.deployments:
            if model not in deployment.models or deployment.hold_s <= 0:
                continue
            if self._demand.of(deployment.models)[1] < deployment.max_held:
                self._places[waiter] = Place(model, self._now() + deployment.hold_s)
                self._demand.held(model, 1)
                return True
        return False

    def drop(self, waiter: Waiter) -> None:
        """It waits no longer; nothing happens if it did not."""
        place = self._places.pop(waiter, None)
        if place is not None:
            self._demand.held(place.model, -1)

    def changed(self) -> None:
        """A standing, a report or the membership has changed: perhaps somebody may go on."""
        if self._places and not self._releasing:
            self._releasing = True  # in a turn of its own: who reports the change is not done with it yet
            asyncio.get_running_loop().call_soon(self._release)

    def sweep(self) -> None:
        """Refuse who has waited for too long."""
        now = self._now()
        for waiter, place in list(self._places.items()):
            if now >= place.until_s:
                self.drop(waiter)
                waiter.refuse(
                    NoReplicaReady(f"no replica of '{place.model}' became ready in time; try later")
                )

    def _release(self) -> None:
        self._releasing = False
        for waiter, place in list(self._places.items()):
            if waiter not in self._places:
                continue
            try:
                self._models.routable(place.model)
            except NoReplicaReady:
                continue
            except RouterError as error:
                self.drop(waiter)
                waiter.refuse(error)
            else:
                self.drop(waiter)
                waiter.attempt()
