"""What to do next for one LLMDeployment, from one World alone: create, drain, undrain, delete. Touches nothing.

Every call decides anew, so a lost or repeated action does no harm. A spec that was rejected must not come here.
How it ends a replica: drain, wait until routers have cut it off and its requests are over, delete.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal_operator.standing import Standing
from shoal_operator.world import Replica, World


@dataclass(frozen=True, slots=True)
class CreateReplica:
    """Make the pod of `slot` from that revision."""

    revision: str
    slot: int


@dataclass(frozen=True, slots=True)
class _OnReplica:
    """Valid only for the replica that was seen: same UID, same resource version. `why` is for people."""

    name: str
    uid: str
    resource_version: str
    why: str


class Drain(_OnReplica):
    """Annotate it, so that routers send it nothing new."""


class Undrain(_OnReplica):
    """Take the annotation away again."""


class Delete(_OnReplica):
    """Delete its pod."""


Action = CreateReplica | Drain | Undrain | Delete


@dataclass(frozen=True, slots=True)
class Plan:
    """`requeue_after_s`: look again then even if nothing happens; None if time alone changes nothing."""

    actions: tuple[Action, ...] = ()
    requeue_after_s: float | None = None


def plan(world: World, revision: str) -> Plan:
    """The next actions towards desired_replicas replicas of `revision`, the wanted revision's hash."""
    draft = _Draft(world, Standing(world, revision), revision)
    rollout = world.deployment.spec.rollout
    if draft.n == 0:
        draft.end(draft.staying, "no replica is wanted")
    elif rollout.paused or world.prefetching:
        draft.hold()
    elif rollout.type == "Recreate":
        draft.recreate()
    else:
        draft.roll()
    draft.finish()
    return Plan(tuple(draft.actions), draft.standing.next_change_s())


@dataclass(slots=True)
class _Draft:
    """The plan in the making."""

    world: World
    standing: Standing
    revision: str
    actions: list[Action] = field(default_factory=list)
    undrained: set[str] = field(default_factory=set)
    created: int = 0

    @property
    def n(self) -> int:
        return self.world.deployment.desired_replicas

    @property
    def staying(self) -> list[Replica]:
        return [r for r in self.world.replicas if self.standing.staying(r)]

    @property
    def current(self) -> list[Replica]:
        return [r for r in self.staying if self.standing.wanted(r)]

    @property
    def old(self) -> list[Replica]:
        return [r for r in self.staying if not self.standing.wanted(r)]

    @property
    def proven(self) -> bool:
        return any(self.standing.proves_revision(r) for r in self.current)

    @property
    def floor(self) -> int:
        """Fewest available replicas that a rollout leaves. One that finds no node may take the place of an old one."""
        rollout = self.world.deployment.spec.rollout
        budget = max(0, self.n - rollout.max_unavailable)
        if rollout.on_insufficient_capacity == "Wait":
            return budget
        stuck = sum(map(self.standing.stuck, self.current))
        # The last available one goes only where there is but one: else the others make room.
        return min(budget, max(1 if self.n > 1 else 0, budget - stuck))

    def roll(self) -> None:
        """Replace the old, few at a time. Until one new replica is available, the old revision keeps its numbers."""
        rollout = self.world.deployment.spec.rollout
        goal, keep, old = self.n, 0, self.old
        if not self.proven and any(map(self.standing.useful, old)):
            goal, keep = min(self.n, max(1, rollout.max_surge + rollout.max_unavailable)), self.floor
            serving = self.serving_revision()
            # What is left of an earlier bad revision is no capacity.
            leftover = [r for r in old if r.revision != serving and not self.standing.useful(r)]
            self.end(leftover, "its revision is not wanted")
            old = [r for r in old if r not in leftover]
            self.add(serving, keep - len(old))
        undrained = self.undrain(self.revision, self.n - len(self.current))
        self.create(self.revision, goal - len(self.current) - undrained)
        self.replace(old, keep)
        self.shrink(self.current, self.n)

    def replace(self, old: list[Replica], keep: int) -> None:
        """End old replicas: useless ones at once, others while enough are available. `keep` of them stay at least."""
        available = sum(map(self.standing.available, self.staying))
        victims = sorted(old, key=self.standing.victim_order)
        for victim in victims[: max(0, len(victims) - keep)]:
            left = available - self.standing.available(victim)
            if self.standing.useful(victim) and left < self.floor:
                continue
            available = left
            self.end([victim], "replaced by the new revision")

    def recreate(self) -> None:
        """Old ones end first, all at once; new ones begin when none is left."""
        if any(self.standing.exists(r) and not self.standing.wanted(r) for r in self.world.replicas):
            self.end(self.old, "replaced by the new revision")
        else:
            self.add(self.revision, self.n - len(self.current))
        self.shrink(self.current, self.n)

    def hold(self) -> None:
        """A rollout that is paused or waits for its model: numbers follow the demand, with the revision before it."""
        counted = self.old + (self.current if self.proven or not self.old else [])
        self.add(self.serving_revision() if self.old else self.revision, self.n - len(counted))
        surge = self.world.deployment.spec.rollout.max_surge if self.old and self.current else 0
        self.shrink(self.staying, self.n + surge)

    def serving_revision(self) -> str | None:
        """The old revision of which more replicas can be made: the newest remembered one that serves, or has pods."""
        serving = {r.revision for r in self.old if self.standing.useful(r)} or {r.revision for r in self.old}
        return next((r.name for r in reversed(self.world.revisions) if r.name in serving), None)

    def add(self, revision: str | None, count: int) -> None:
        """`count` more of that revision, draining ones first. None is a revision that nobody remembers."""
        if revision is not None:
            self.create(revision, count - self.undrain(revision, count))

    def undrain(self, revision: str, count: int) -> int:
        """Take back up to `count` draining replicas, warm ones first; returns how many."""
        draining = [r for r in self.world.replicas if r.revision == revision and self.standing.draining(r)]
        draining.sort(key=lambda r: (not r.ready, -(r.draining_since_s or 0.0), r.name))
        taken = draining[: max(0, count)]
        self.undrained.update(r.uid for r in taken)
        self.actions += [_on(Undrain, r, "it is wanted again") for r in taken]
        return len(taken)

    def create(self, revision: str, count: int) -> None:
        """Up to `count` new replicas, within desired plus surge."""
        rollout = self.world.deployment.spec.rollout
        surge = 0 if rollout.type == "Recreate" else rollout.max_surge
        existing = sum(map(self.standing.exists, self.world.replicas)) + self.created
        # A pod that does not count any more still has its name.
        used = {r.slot for r in self.world.replicas if r.revision == revision}
        free = (slot for slot in range(len(used) + max(0, count)) if slot not in used)
        for _ in range(min(count, self.n + surge - existing)):
            self.actions.append(CreateReplica(revision, next(free)))
            self.created += 1

    def shrink(self, replicas: list[Replica], count: int) -> None:
        """End those beyond `count`, the least missed first."""
        victims = sorted(replicas, key=self.standing.victim_order)
        self.end(victims[: max(0, len(victims) - count)], "more replicas than wanted")

    def end(self, replicas: Iterable[Replica], why: str) -> None:
        for replica in replicas:
            self.actions.append(_on(Delete if self.standing.never_served(replica) else Drain, replica, why))

    def finish(self) -> None:
        """Delete what has ended."""
        for replica in self.world.replicas:
            if replica.terminating_since_s is not None or replica.uid in self.undrained:
                continue
            if self.standing.failed(replica):
                self.actions.append(_on(Delete, replica, "its pod has ended"))
            elif self.standing.draining(replica) and (why := self.reason_to_delete(replica)):
                self.actions.append(_on(Delete, replica, why))

    def reason_to_delete(self, replica: Replica) -> str:
        """Why a draining replica can go now; empty if it cannot."""
        if self.standing.never_served(replica):
            return "it never served"
        if self.standing.drained(replica):
            return "drained"
        return "drain timed out" if self.standing.overdue(replica) else ""


def _on(
    kind: type[Drain] | type[Undrain] | type[Delete], replica: Replica, why: str
) -> Drain | Undrain | Delete:
    return kind(replica.name, replica.uid, replica.resource_version, why)
