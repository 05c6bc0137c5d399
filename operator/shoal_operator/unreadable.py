"""The status of an object whose spec this operator cannot read: all but SpecAccepted stays as it was. Pure.

The schema of the CRD lets through what only another version of the operator understands. Its pods are left alone.
"""

from __future__ import annotations

from typing import Any

from shoal_api.kube import Object
from shoal_api.spec import InvalidManifest
from shoal_operator.timestamps import rfc3339

ACCEPTED = "SpecAccepted"


def unreadable_status(found: Object, error: InvalidManifest, now_s: float) -> dict[str, Any]:
    """The whole status with SpecAccepted=False; the same again for an object that has it already."""
    previous = found.get("status", {})
    conditions = {each["type"]: each for each in previous.get("conditions") or ()}
    before = conditions.get(ACCEPTED, {})
    is_same = before.get("status") == "False"
    conditions[ACCEPTED] = {
        "type": ACCEPTED,
        "status": "False",
        "reason": "InvalidSpec",
        "message": f"{error}; pods stay as they are until the spec is corrected",
        "lastTransitionTime": before["lastTransitionTime"] if is_same else rfc3339(now_s),
        "observedGeneration": found["metadata"]["generation"],
    }
    return {
        **previous,
        "observedGeneration": found["metadata"]["generation"],
        "conditions": [conditions[kind] for kind in sorted(conditions)],
    }
