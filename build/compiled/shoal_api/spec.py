"""The LLMDeployment resource: the one source of CRD, reference page, pods' options and local fleet.

Its blocks are in workload.py, lifecycle.py, pod_template.py and options.py; what the operator reports back is
in status.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, ValidationError

from shoal_api.lifecycle import Autoscaling, DisruptionBudget, Drain, Replicas, Rollout
from shoal_api.names import MAX_NAME_CHARS, NAME_PATTERN
from shoal_api.nulls import without_nulls
from shoal_api.pod_template import PodTemplate
from shoal_api.problems import Problem, problems_of
from shoal_api.routing_options import RoutingOptions
from shoal_api.rules import broken_rules
from shoal_api.schema import Rule, Strict
from shoal_api.suggestions import with_suggestion
from shoal_api.workload import Adapter, Cache, Engine, Model, Parallelism, Resources, keyed_by


class InvalidManifest(ValueError):
    """A manifest that is no LLMDeployment; `problems` names each field and what to do about it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class LLMDeploymentSpec(Strict):
    """What the user wants."""

    model: Model = Field(description="Which model is served, and under which name.")
    engine: Engine = Field(default=Engine(), description="How an engine computes, and its container.")
    parallelism: Parallelism = Field(
        default=Parallelism(), description="How many accelerators share one replica."
    )
    resources: Resources = Field(default=Resources(), description="What one pod asks of its node.")
    replicas: Replicas = Field(
        default=1, description="Number of replicas; with autoscaling it is written by the autoscaler alone."
    )
    autoscaling: Autoscaling | None = Field(
        default=None, description="Let load decide the number of replicas; unset leaves it to replicas."
    )
    rollout: Rollout = Field(
        default=Rollout(), description="How a changed spec reaches the running replicas."
    )
    revision_history_limit: Annotated[int, Field(ge=0, le=100)] = Field(
        default=10, description="Old revisions that are remembered."
    )
    drain: Drain = Field(default=Drain(), description="How a replica ends.")
    routing: RoutingOptions = Field(
        default=RoutingOptions(), description="How requests are spread over the replicas."
    )
    cache: Cache = Field(default=Cache(), description="Where a pod keeps the model.")
    adapters: Annotated[tuple[Adapter, ...], Field(max_length=64, strict=False)] = Field(
        default=(), description="LoRA adapters, served beside the model.", json_schema_extra=keyed_by("name")
    )
    pod_template: PodTemplate = Field(default=PodTemplate(), description="What pods get beside the computed.")
    disruption_budget: DisruptionBudget = Field(
        default=DisruptionBudget(), description="What voluntary evictions may take at once."
    )
    suspend: bool = Field(default=False, description="Run no replica, keep the cache and the replica count.")

    rules: ClassVar = (
        Rule(
            "self.cache.type != 'Image' || self.model.uri.startsWith('oci://')",
            "type Image needs an oci:// model",
            "cache.type",
        ),
        Rule(
            "!has(self.model.name) || !has(self.adapters)"
            " || self.adapters.all(adapter, adapter.name != self.model.name)",
            "an adapter cannot have the name of the model",
            "adapters",
        ),
        Rule(
            "!has(self.resources.acceleratorCount) || self.resources.acceleratorCount == 0"
            " || self.parallelism.tensor * self.parallelism.pipeline % self.resources.acceleratorCount == 0",
            "must divide parallelism.tensor times parallelism.pipeline, or be 0 for the CPU",
            "resources.acceleratorCount",
        ),
        Rule(
            "self.engine.device != 'cuda' || !has(self.resources.acceleratorCount)"
            " || self.resources.acceleratorCount > 0",
            "cuda needs an accelerator: leave resources.acceleratorCount out",
            "engine.device",
        ),
        Rule(
            "self.engine.device != 'cpu' || has(self.resources.acceleratorCount)"
            " && self.resources.acceleratorCount == 0",
            "cpu would leave an accelerator idle: set resources.acceleratorCount to 0",
            "engine.device",
        ),
        Rule(
            "self.parallelism == oldSelf.parallelism || self.rollout.type == 'Recreate'",
            "can change only with rollout.type Recreate: set that first",
            "parallelism",
        ),
        Rule(
            "self.cache.type == oldSelf.cache.type || self.rollout.type == 'Recreate'",
            "can change only with rollout.type Recreate: set that first",
            "cache.type",
        ),
    )


class Metadata(Strict):
    """The part of metadata that Shoal reads; the rest is Kubernetes' own."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="Name of the object.")
    namespace: str = Field(default="default", description="Namespace of the object.")
    uid: str = Field(default="", description="Given by the API server.")
    generation: int = Field(default=0, description="Counts the changes of the spec.")
    resource_version: str = Field(default="", description="Counts the changes of the object.")
    labels: dict[str, str] = Field(default={}, description="Labels.")
    annotations: dict[str, str] = Field(default={}, description="Annotations.")


class LLMDeployment(Strict):
    """A model served by a number of equal replicas behind one address."""

    api_version: Literal["serving.shoal.dev/v1alpha1"] = Field(
        default="serving.shoal.dev/v1alpha1", description="Group and version."
    )
    kind: Literal["LLMDeployment"] = Field(default="LLMDeployment", description="LLMDeployment.")
    metadata: Metadata = Field(description="Name and namespace.")
    spec: LLMDeploymentSpec = Field(description="What the user wants.")
    status: dict[str, Any] = Field(default={}, description="What the operator reports; see status.py.")

    rules: ClassVar = (
        Rule(
            f"size(self.metadata.name) <= {MAX_NAME_CHARS}",
            f"must have at most {MAX_NAME_CHARS} characters, names of pods are made from it",
            "metadata.name",
        ),
        Rule(
            f"self.metadata.name.matches('{NAME_PATTERN}')",
            "must be lower-case letters, digits and dashes, a letter first: it names Services",
            "metadata.name",
        ),
        Rule(
            "has(self.spec.model.name) || !has(self.spec.adapters)"
            " || self.spec.adapters.all(adapter, adapter.name != self.metadata.name)",
            "an adapter cannot have the model's name, here metadata.name",
            "spec.adapters",
        ),
    )

    @classmethod
    def parse(cls, manifest: Mapping[str, Any]) -> Self:
        """A manifest, or an object from the API server. Raises InvalidManifest with every problem."""
        try:
            deployment = cls.model_validate(without_nulls(manifest, cls), by_alias=True, by_name=False)
            problems = broken_rules(deployment)
        except ValidationError as error:
            problems = problems_of(error)
        if problems:
            raise InvalidManifest([with_suggestion(problem, cls, manifest) for problem in problems])
        return deployment

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def served_model(self) -> str:
        """The model's name in requests."""
        return self.spec.model.name or self.metadata.name

    @property
    def accelerators_per_pod(self) -> int:
        """0 means CPU."""
        count = self.spec.resources.accelerator_count
        return self.spec.parallelism.tensor if count is None else count

    @property
    def pods_per_replica(self) -> int:
        """More than 1 is a replica over several nodes, which needs LeaderWorkerSet."""
        total = self.spec.parallelism.tensor * self.spec.parallelism.pipeline
        return max(1, total // self.accelerators_per_pod) if self.accelerators_per_pod else 1

    @property
    def desired_replicas(self) -> int:
        """spec.replicas, within the autoscaler's bounds while it is on; 0 while suspended."""
        if self.spec.suspend:
            return 0
        scaling = self.spec.autoscaling
        if scaling is None or not scaling.enabled:
            return self.spec.replicas
        return min(max(self.spec.replicas, scaling.min_replicas), scaling.max_replicas)
