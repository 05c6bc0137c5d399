"""The status of an object whose spec cannot be read."""

from __future__ import annotations

from shoal_api.problems import Problem
from shoal_api.spec import InvalidManifest
from shoal_api.status import LLMDeploymentStatus
from shoal_operator.transitions import events_of
from shoal_operator.unreadable import unreadable_status

ERROR = InvalidManifest([Problem(("spec", "engine", "device"), "is not known here")])


def condition(kind: str, status: str, time: str = "2026-01-01T00:00:00Z") -> dict:
    return {
        "type": kind,
        "status": status,
        "reason": "Accepted" if kind == "SpecAccepted" else "EnoughReplicas",
        "message": "",
        "lastTransitionTime": time,
        "observedGeneration": 1,
    }


def test_a_new_object_gets_one_condition_and_one_event():
    new = unreadable_status({"metadata": {"generation": 1}}, ERROR, 0.0)
    LLMDeploymentStatus.model_validate(new, by_alias=True)
    (only,) = new["conditions"]
    assert (only["type"], only["status"], only["reason"]) == ("SpecAccepted", "False", "InvalidSpec")
    assert "spec.engine.device" in only["message"]
    assert [(kind, reason) for kind, reason, _ in events_of({}, new)] == [("Warning", "SpecRejected")]


def test_all_else_stays_as_it_was():
    status = {
        "replicas": 2,
        "conditions": [condition("Available", "True"), condition("SpecAccepted", "True")],
    }
    new = unreadable_status({"metadata": {"generation": 4}, "status": status}, ERROR, 86400.0)
    assert (new["replicas"], new["observedGeneration"]) == (2, 4)
    assert new["conditions"][0] == condition("Available", "True")
    assert new["conditions"][1]["lastTransitionTime"] == "1970-01-02T00:00:00Z"


def test_the_same_object_gives_the_same_status_later():
    found = {"metadata": {"generation": 1}}
    first = unreadable_status(found, ERROR, 0.0)
    again = unreadable_status({**found, "status": first}, ERROR, 1000.0)
    assert again == first
