"""Every name that two programs, a dashboard or a user's script must spell alike. Values only.

What stands here is an interface: renaming a label strands running pods, renaming a metric breaks dashboards.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "serving.shoal.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "LLMDeployment"
LIST_KIND: Final = f"{KIND}List"
PLURAL: Final = "llmdeployments"
SINGULAR: Final = "llmdeployment"
SHORT_NAME: Final = "llmd"
CATEGORIES: Final = ("shoal", "all")
CRD_NAME: Final = f"{PLURAL}.{GROUP}"

# A pod is <name>-<revision>-<slot> and a label value has 63 characters at most.
MAX_NAME_CHARS: Final = 40
NAME_PATTERN: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"

LABEL_DEPLOYMENT: Final = f"{GROUP}/deployment"  # on everything the operator makes: the LLMDeployment's name
LABEL_REVISION: Final = f"{GROUP}/revision"  # on pods: hash of what the pod was rendered from
LABEL_SLOT: Final = f"{GROUP}/slot"  # on pods: which replica this is
LABEL_ROLE: Final = f"{GROUP}/role"  # "engine" or "router"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
ROLE_ENGINE: Final = "engine"
ROLE_ROUTER: Final = "router"
ROLE_PREFETCH: Final = "prefetch"  # pods that fetch a model ahead of a rollout
ROLE_WORKER: Final = "worker"  # pods of a multi-node replica beside its leader; never routed to
MANAGER: Final = "shoal"

ANNOTATION_DRAIN: Final = f"{GROUP}/drain"  # on pods: since when the router sends no new requests, RFC 3339
ANNOTATION_OPERATOR: Final = f"{GROUP}/operator-version"  # on pods: the operator that rendered them
ANNOTATION_ACTIVATED: Final = (
    f"{GROUP}/activated-at"  # on a revision's ConfigMap: when it last became the wanted one
)
ANNOTATION_RESTART: Final = f"{GROUP}/restarted-at"  # on the resource: a new value rolls the pods

FIELD_MANAGER_OPERATOR: Final = "shoal-operator"
FIELD_MANAGER_AUTOSCALER: Final = "shoal-autoscaler"
LEASE: Final = "shoal-operator"

PORT_ENGINE_HTTP: Final = 8000
PORT_ENGINE_GRPC: Final = 9000
PORT_ROUTER_HTTP: Final = 8080
PORT_ROUTER_GRPC: Final = 9000
PORT_OPERATOR_PROBES: Final = 8081
PORT_NAME_HTTP: Final = "http"
PORT_NAME_GRPC: Final = "grpc"

CONTAINER_ENGINE: Final = "engine"
CONTAINER_ROUTER: Final = "router"
CONTAINER_LOADER: Final = "model-loader"
VOLUME_MODELS: Final = "shoal-models"
VOLUME_OPTIONS: Final = "shoal-options"
VOLUME_SHARED_MEMORY: Final = "shoal-shm"
VOLUME_SOURCE: Final = "shoal-source"
VOLUME_TMP: Final = "shoal-tmp"
SOURCE_DIR: Final = "/source"  # where a pod sees the claim of a pvc:// model, read-only
PROGRESS_PATH: Final = "/progress"  # of the model-loader, on PORT_ENGINE_HTTP
MODELS_DIR: Final = "/models"  # where a pod sees its cache; file:///models/X lies in it
OPTIONS_FILE: Final = "/etc/shoal/options.yaml"

DEFAULT_ACCELERATOR: Final = "nvidia.com/gpu"

HEADER_REPLICA: Final = "x-shoal-replica"  # the router adds it to every reply that it proxies
HEADER_REQUEST_ID: Final = "x-request-id"
HEADER_TRACEPARENT: Final = "traceparent"  # W3C Trace Context: the span that asks
HEADER_NOT_STARTED: Final = "x-shoal-not-started"  # an engine's error before any work: safe to send elsewhere

# Between router and engine only: the router takes x-shoal-* from no client and passes these on to none.
HEADER_CHAIN: Final = (
    "x-shoal-chain"  # BYTES;BASE64URL: bytes hashed, then request_prefix's hashes, 8 bytes each
)
HEADER_CACHE_SALT: Final = "x-shoal-cache-salt"  # the tenant's, beside the body's own cache_salt
HEADER_TIMEOUT_MS: Final = "x-shoal-timeout-ms"  # how long the client may still be kept, for all of the reply
HEADER_RESUMABLE: Final = "x-shoal-resumable"  # tell in the stream what continuing it elsewhere takes
HEADER_RESUME: Final = (
    "x-shoal-resume"  # of a reply: the state to continue it with; of a request: go on from it
)
RESUME_LINE: Final = (
    b":shoal "  # opens each event of such a stream: `:shoal STAGE IDS`; the router takes it out
)

# vLLM's names, read by dashboards, KEDA rules, GIE endpoint pickers, our router and our autoscaler.
METRIC_RUNNING: Final = "vllm:num_requests_running"
METRIC_WAITING: Final = "vllm:num_requests_waiting"
METRIC_KV_USAGE: Final = "vllm:kv_cache_usage_perc"
METRIC_MAX_NUM_SEQS: Final = "shoal:max_num_seqs"  # requests that the engine computes at once
METRIC_MAX_REQUESTS: Final = "shoal:max_requests"  # these and the waiting ones: above it answers 429
METRIC_GRPC_PORT: Final = (
    "shoal:grpc_port"  # where the engine pushes its state to routers; 0 when it does not
)
METRIC_PREFIX_QUERIES: Final = "vllm:prefix_cache_queries"
METRIC_PREFIX_HITS: Final = "vllm:prefix_cache_hits"


def pod_name(deployment: str, revision: str, slot: int) -> str:
    """The name of a replica's pod; deterministic, so that a second create is a conflict, no duplicate."""
    return f"{deployment}-{revision}-{slot}"
