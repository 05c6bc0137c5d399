"""What a done action tells the user, as an event. Pure; events of a whole rollout are transitions.py's."""

from __future__ import annotations

from shoal_api.names import pod_name
from shoal_operator.plan import Action, CreateReplica, Delete, Drain
from shoal_operator.transitions import Event
from shoal_operator.world import World


def event_of(action: Action, world: World) -> Event | None:
    """None for what needs no telling: a drain that is taken back ends in a replica that serves."""
    if isinstance(action, CreateReplica):
        return "Normal", "PodCreated", f"{pod_name(world.deployment.name, action.revision, action.slot)}"
    if isinstance(action, Drain):
        return "Normal", "DrainStarted", f"{action.name}: {action.why}"
    if not isinstance(action, Delete):
        return None
    replica = next(each for each in world.replicas if each.uid == action.uid)
    if replica.draining_since_s is None:
        return "Normal", "PodDeleted", f"{action.name}: {action.why}"
    left = replica.traffic.in_flight
    if left:
        return "Warning", "DrainTimedOut", f"{action.name}: {left} requests were still in flight"
    return "Normal", "DrainCompleted", f"{action.name}: {action.why}"
