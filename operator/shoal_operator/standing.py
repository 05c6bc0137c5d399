"""How each replica stands in a World: whether it exists, serves, is available, has ended. Predicates only, no decision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shoal_operator.world import Replica, World

LOST_AFTER_S = 60.0  # a pod that outlives its grace by this much sits on a node that is gone
FAILED_PAUSE_S = 10.0  # a node that refuses pods would otherwise see a new one at every look


@dataclass(frozen=True, slots=True)
class Standing:
    """Predicates on the replicas of `world`, while `revision` is the wanted one."""

    world: World
    revision: str

    def wanted(self, replica: Replica) -> bool:
        return replica.revision == self.revision

    def failed(self, replica: Replica) -> bool:
        """Its pod has ended for good and can be replaced."""
        ended = replica.phase in ("Failed", "Succeeded")
        return ended and self.world.now_s - replica.created_s >= FAILED_PAUSE_S

    def exists(self, replica: Replica) -> bool:
        """It holds a place on some node, or will."""
        since = replica.terminating_since_s
        lost = since is not None and self.world.now_s > since + replica.termination_grace_s + LOST_AFTER_S
        return not lost and not self.failed(replica)

    def staying(self, replica: Replica) -> bool:
        """It is neither draining nor terminating nor failed."""
        ending = replica.draining_since_s is not None or replica.terminating_since_s is not None
        return not ending and not self.failed(replica)

    def draining(self, replica: Replica) -> bool:
        """It is cordoned, and its pod is not deleted yet."""
        return (
            replica.draining_since_s is not None
            and replica.terminating_since_s is None
            and not self.failed(replica)
        )

    def useful(self, replica: Replica) -> bool:
        """It may be serving somebody, whatever the routers that we cannot hear think."""
        return self.staying(replica) and (replica.ready or replica.traffic.routable_by > 0)

    def settled(self, replica: Replica) -> bool:
        """It stays, and has been ready for rollout.minReadySeconds."""
        min_ready_s = self.world.deployment.spec.rollout.min_ready_s
        since = replica.ready_since_s
        return (
            self.staying(replica)
            and replica.ready
            and since is not None
            and since + min_ready_s <= self.world.now_s
        )

    def available(self, replica: Replica) -> bool:
        """It is settled, and every router sends requests to it."""
        everywhere = replica.traffic.routable_by >= self.world.routers_expected
        return self.settled(replica) and self.world.routers_agree and everywhere

    def proves_revision(self, replica: Replica) -> bool:
        """It shows that its revision works. Routers that restart do not take that back."""
        return self.available(replica) or (self.settled(replica) and not self.world.routers_agree)

    def stuck(self, replica: Replica) -> bool:
        """No node has had room for it for rollout.insufficientCapacitySeconds."""
        since = replica.unschedulable_since_s
        limit_s = self.world.deployment.spec.rollout.insufficient_capacity_s
        return self.staying(replica) and since is not None and since + limit_s <= self.world.now_s

    def never_served(self, replica: Replica) -> bool:
        """It has never been ready and nobody waits for it: nothing is lost with it."""
        traffic = replica.traffic
        untouched = not replica.ready and replica.ready_since_s is None
        quiet = traffic.routable_by == 0 and traffic.in_flight == 0
        return untouched and quiet and (replica.phase == "Pending" or self.world.routers_agree)

    def drained(self, replica: Replica) -> bool:
        """No router sends it anything, and every request of it has ended."""
        traffic, expected = replica.traffic, self.world.routers_expected
        cut_off = traffic.cordoned_by + (expected - traffic.known_by) >= expected
        return self.world.routers_agree and cut_off and traffic.in_flight == 0

    def overdue(self, replica: Replica) -> bool:
        """Its requests have had drain.timeoutSeconds to end."""
        since = replica.draining_since_s
        return since is not None and since + self.world.deployment.spec.drain.timeout_s <= self.world.now_s

    def victim_order(self, replica: Replica) -> tuple[bool, bool, bool, int, float, int, str]:
        """Sorts first what is missed least; among equals the newest, and of those born in one second the highest."""
        return (
            self.available(replica),
            self.useful(replica),
            self.wanted(replica),
            replica.traffic.in_flight,
            -replica.created_s,
            -replica.slot,
            replica.name,
        )

    def next_change_s(self) -> float | None:
        """Seconds until time alone makes one of the above true; None if it never does."""
        pods = (*self.world.replicas, *self.world.prefetch_pods)
        waits = [moment - self.world.now_s for r in pods for moment in self._moments(r)]
        return min((wait for wait in waits if wait > 0), default=None)

    def _moments(self, replica: Replica) -> Iterator[float]:
        spec = self.world.deployment.spec
        if replica.terminating_since_s is not None:
            # "Later than" decides there, hence the second on top.
            yield replica.terminating_since_s + replica.termination_grace_s + LOST_AFTER_S + 1.0
            return
        if replica.phase in ("Failed", "Succeeded"):
            yield replica.created_s + FAILED_PAUSE_S
        if replica.draining_since_s is not None:
            yield replica.draining_since_s + spec.drain.timeout_s
        if replica.ready and replica.ready_since_s is not None:
            yield replica.ready_since_s + spec.rollout.min_ready_s
        if replica.unschedulable_since_s is not None:
            yield replica.unschedulable_since_s + spec.rollout.insufficient_capacity_s
