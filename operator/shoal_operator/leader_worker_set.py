"""A replica over several pods: one LeaderWorkerSet of one group, so that drain and victim stay the operator's. Pure.

Its name is the replica's, never the deployment's: the LWS controller makes a Service of the same name. Only the
leader answers requests and has the engine role; a worker is alive as long as its process.
"""

from __future__ import annotations

from typing import Any

from shoal_api.names import ROLE_ENGINE, ROLE_WORKER, pod_name
from shoal_api.spec import LLMDeployment
from shoal_operator.ownership import owned_metadata, replica_labels
from shoal_operator.pod import pod_annotations, pod_spec

API_VERSION = "leaderworkerset.x-k8s.io/v1"
KIND = "LeaderWorkerSet"
MASTER_PORT = 29500

# The controller puts LWS_* before these; torch.distributed reads these with init_method env://.
RENDEZVOUS = (
    ("MASTER_ADDR", "$(LWS_LEADER_ADDRESS)"),
    ("MASTER_PORT", str(MASTER_PORT)),
    ("RANK", "$(LWS_WORKER_INDEX)"),
    ("WORLD_SIZE", "$(LWS_GROUP_SIZE)"),
)

Fields = dict[str, Any]


def render_group(
    deployment: LLMDeployment, revision: str, slot: int, engine_image: str, operator_version: str
) -> Fields:
    """The LeaderWorkerSet of replica `slot`; arguments as of pod.render()."""

    def template(role: str) -> Fields:
        spec = pod_spec(deployment, revision, engine_image, serving=role == ROLE_ENGINE)
        engine = spec["containers"][0]
        named = [{"name": name, "value": value} for name, value in RENDEZVOUS]
        taken = {variable["name"] for variable in named}
        engine["env"] = [variable for variable in engine["env"] if variable["name"] not in taken] + named
        metadata = {
            "labels": replica_labels(deployment, revision, slot, role),
            "annotations": pod_annotations(deployment, operator_version),
        }
        return {"metadata": metadata, "spec": spec}

    name = pod_name(deployment.name, revision, slot)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": owned_metadata(deployment, name, replica_labels(deployment, revision, slot)),
        "spec": {
            "replicas": 1,
            # An NCCL communicator does not outlive a member. A leader that waited for its workers would never be ready.
            "startupPolicy": "LeaderCreated",
            "networkConfig": {"subdomainPolicy": "UniquePerReplica"},
            "leaderWorkerTemplate": {
                "size": deployment.pods_per_replica,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": template(ROLE_ENGINE),
                "workerTemplate": template(ROLE_WORKER),
            },
        },
    }
