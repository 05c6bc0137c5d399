"""Which pods are alike: a hash of what the user wrote. Never of what an operator version renders from it."""

from __future__ import annotations

import hashlib
import json
from typing import Final

from shoal_api.names import ANNOTATION_RESTART
from shoal_api.spec import LLMDeployment

REVISION_CHARS: Final = 10
HASHED_BLOCKS: Final = (
    "model",
    "engine",
    "parallelism",
    "resources",
    "cache",
    "adapters",
    "pod_template",
    "drain",
)


def revision_of(deployment: LLMDeployment) -> str:
    """10 hex characters, the same for the same pods.

    A field at its default counts as unset, so that an operator that knows more fields finds the same hash.
    """
    counted = deployment.spec.model_dump(
        by_alias=True, exclude_defaults=True, mode="json", include=set(HASHED_BLOCKS)
    )
    # Whether a rollout prefetches changes no pod.
    counted["cache"] = {key: value for key, value in counted.get("cache", {}).items() if key != "prefetch"}
    counted["restart"] = deployment.metadata.annotations.get(ANNOTATION_RESTART, "")
    text = json.dumps(counted, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:REVISION_CHARS]
