"""The options of `shoal operator`. Those of engine and router are in options.py."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shoal_api.names import LABEL_ROLE, ROLE_ROUTER
from shoal_api.option_types import Name, Namespaces, Port, Seconds
from shoal_api.schema import Strict


class OperatorOptions(Strict):
    """`shoal operator`: the controller that turns LLMDeployments into pods. Runs once per release, behind a Lease."""

    namespace: Namespaces = Field(
        default=(),
        description="Namespace whose LLMDeployments are served; repeatable; '*' is every one; none takes the pod's own.",
    )
    release_namespace: Name | None = Field(
        default=None, description="Namespace of routers and Lease; unset takes the pod's own."
    )
    router_selector: Annotated[str, Field(max_length=1024)] = Field(
        default=f"{LABEL_ROLE}={ROLE_ROUTER}", description="Label selector of the router pods."
    )
    router_url: Annotated[str, Field(title="URL", max_length=1024)] = Field(
        default="http://shoal-router:8080/v1",
        description="Where applications reach the routers; shown in status.url.",
    )
    engine_image: Annotated[str, Field(min_length=1, max_length=512)] = Field(
        default="shoal-engine", description="Container image of engines whose spec.engine.image is unset."
    )
    probe_port: Port = Field(default=8081, description="Port of /healthz and /metrics; 0 takes a free one.")
    resync_s: Seconds = Field(
        default=30.0, description="Seconds after which every LLMDeployment is looked at again without cause."
    )
    max_concurrent_reconciles: Annotated[int, Field(ge=1, le=256)] = Field(
        default=8, description="LLMDeployments that are worked on at the same time."
    )
