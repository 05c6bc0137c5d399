"""What a user is told of an action."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from shoal_api.spec import LLMDeployment
from shoal_api.status import EventReason
from shoal_operator.action_events import event_of
from shoal_operator.plan import Action, CreateReplica, Delete, Drain, Undrain
from shoal_operator.world import Replica, Traffic, World

DEPLOYMENT = LLMDeployment.parse({"metadata": {"name": "m"}, "spec": {"model": {"uri": "hf://a/b"}}})
SERVES = Replica("m-r-0", "u", "1", "r", 0, 0.0, ready=True, ready_since_s=1.0)
DRAINS = replace(SERVES, draining_since_s=5.0)
BUSY = replace(DRAINS, traffic=Traffic(in_flight=3))


@pytest.mark.parametrize(
    ("action", "replica", "event"),
    [
        (CreateReplica("r", 4), SERVES, ("Normal", "PodCreated", "m-r-4")),
        (Drain("m-r-0", "u", "1", "why"), SERVES, ("Normal", "DrainStarted", "m-r-0: why")),
        (Undrain("m-r-0", "u", "1", "why"), DRAINS, None),
        (Delete("m-r-0", "u", "1", "drained"), DRAINS, ("Normal", "DrainCompleted", "m-r-0: drained")),
        (Delete("m-r-0", "u", "1", "it failed"), SERVES, ("Normal", "PodDeleted", "m-r-0: it failed")),
        (
            Delete("m-r-0", "u", "1", "drain timed out"),
            BUSY,
            ("Warning", "DrainTimedOut", "m-r-0: 3 requests were still in flight"),
        ),
    ],
)
def test_each_action_has_its_event(action: Action, replica: Replica, event: tuple[str, str, str] | None):
    found = event_of(action, World(DEPLOYMENT, 10.0, replicas=(replica,)))
    assert found == event
    assert found is None or found[1] in get_args(EventReason)
