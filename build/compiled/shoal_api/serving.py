"""From a manifest to the options of one engine, the same for a pod and a local process. Does no I/O."""

from __future__ import annotations

from collections.abc import Mapping

from shoal_api.options import EngineOptions, ServeOptions
from shoal_api.spec import LLMDeployment


def serve_options(
    deployment: LLMDeployment,
    model: str,
    adapter_paths: Mapping[str, str] | None = None,
    *,
    host: str = "0.0.0.0",
    port: int = 8000,
    grpc_port: int = 9000,
) -> ServeOptions:
    """What `shoal serve` gets; `model` and `adapter_paths` (by name) say where the files are for it."""
    spec = deployment.spec
    engine = {name: getattr(spec.engine, name) for name in EngineOptions.model_fields}
    if spec.adapters:
        engine["enable_lora"] = True
    if deployment.accelerators_per_pod == 0:
        engine["device"] = "cpu"
    return ServeOptions(
        **engine,
        model=model,
        revision=spec.model.revision,
        served_model_name=deployment.served_model,
        tensor_parallel_size=spec.parallelism.tensor,
        pipeline_parallel_size=spec.parallelism.pipeline,
        lora=tuple(f"{name}={path}" for name, path in (adapter_paths or {}).items()),
        host=host,
        port=port,
        grpc_port=grpc_port,
        drain_timeout_s=float(spec.drain.timeout_s),
    )
