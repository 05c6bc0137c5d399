"""The replicas of one world, counted and sorted into what conditions speak of. Words nothing, decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal_operator.world import PodFailure, Replica, World


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of LLMDeploymentStatus, and the replicas behind them. `routable` counts all revisions' replicas."""

    world: World
    revision: str
    desired: int
    alive: tuple[Replica, ...]  # not being deleted
    updated: tuple[Replica, ...]  # of those, of the wanted revision
    ready: int
    available: int
    routable: int
    draining: int
    rollout_done: bool

    @property
    def generation(self) -> int:
        return self.world.deployment.metadata.generation

    @property
    def needed(self) -> int:
        """Routable replicas from which on the deployment counts as available."""
        return max(1, self.desired - self.world.deployment.spec.rollout.max_unavailable)

    @property
    def failing(self) -> tuple[tuple[Replica, PodFailure], ...]:
        """Pods that do not do their part because of a failure; one that was restarted and serves is none."""
        return tuple(
            (replica, replica.failure)
            for replica in (*self.alive, *self.world.prefetch_pods)
            if replica.failure and (replica.failure.current or not replica.ready)
        )

    @property
    def stuck(self) -> tuple[Replica, ...]:
        """Replicas that have had no node for longer than the spec calls patience."""
        patience = self.world.deployment.spec.rollout.insufficient_capacity_s
        return tuple(
            replica
            for replica in self.alive
            if replica.unschedulable_since_s is not None
            and self.world.now_s - replica.unschedulable_since_s >= patience
        )

    @property
    def deadline_s(self) -> float | None:
        """When the rollout counts as failed unless it gets on before; None if none runs, or it is held."""
        rollout = self.world.deployment.spec.rollout
        if self.rollout_done or rollout.paused:
            return None
        steps = [each.activated_s for each in self.world.revisions if each.name == self.revision]
        steps += [each.ready_since_s for each in self.updated if each.ready_since_s is not None]
        return max(steps, default=self.world.now_s) + rollout.progress_deadline_s


def tally(world: World, revision: str, previous: Mapping[str, Any]) -> Tally:
    """Counts `world`; `previous` is the status before, for what cannot be seen now."""
    desired = world.deployment.desired_replicas
    # Sorted, so that messages do not depend on the order of a list that has none.
    in_order = sorted(world.replicas, key=lambda each: each.name)
    alive = tuple(each for each in in_order if each.terminating_since_s is None)
    updated = tuple(each for each in alive if each.revision == revision)
    ready = sum(each.ready for each in alive)
    routable = _routable(world, alive, ready, previous)
    serving = sum(_is_routable(world, each) and _is_available(world, each) for each in updated)
    # A revision that once came through stays so: a replica lost later is no rollout.
    came_through = previous.get("currentRevision") == revision or serving >= desired
    return Tally(
        world=world,
        revision=revision,
        desired=desired,
        alive=alive,
        updated=updated,
        ready=ready,
        available=sum(_is_available(world, each) for each in alive),
        routable=routable,
        draining=sum(
            each.draining_since_s is not None or each.terminating_since_s is not None
            for each in world.replicas
        ),
        rollout_done=came_through and len(updated) == len(alive),
    )


def _routable(world: World, alive: tuple[Replica, ...], ready: int, previous: Mapping[str, Any]) -> int:
    """While no router speaks to us the last word counts: after a restart of the operator nothing changes."""
    if world.routers_expected and not world.routers_fresh:
        return min(int(previous.get("routableReplicas") or 0), ready)
    return sum(_is_routable(world, each) for each in alive)


def _is_routable(world: World, replica: Replica) -> bool:
    return 0 < world.routers_fresh <= replica.traffic.routable_by


def _is_available(world: World, replica: Replica) -> bool:
    min_ready_s = world.deployment.spec.rollout.min_ready_s
    since = replica.ready_since_s
    return replica.ready and since is not None and world.now_s - since >= min_ready_s
