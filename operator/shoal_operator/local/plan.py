"""From manifests to processes on one machine: which run, at which ports, with which share of it. Pure.

The options are the pods' own (shoal_api/serving.py); only what a node would give a pod is decided here: addresses,
CPU threads and GPUs. Nothing is looked up: paths, ports and devices come in as values.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from shoal_api.flags import to_args
from shoal_api.options import RouterOptions
from shoal_api.routing_options import RoutingOptions
from shoal_api.serving import serve_options
from shoal_api.spec import LLMDeployment
from shoal_operator.local.errors import CannotRun
from shoal_operator.local.ports import LOOPBACK
from shoal_operator.local.processes import Command

ROUTER_NAME = "router"


@dataclass(frozen=True, slots=True)
class Programs:
    """The start of the command lines."""

    engine: tuple[str, ...] = (sys.executable, "-m", "shoal_engine")
    router: tuple[str, ...] = (sys.executable, "-m", "shoal_router")


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to share: CPU threads, the ids of its GPUs, free ports, and where the router listens."""

    cpus: int
    gpus: tuple[str, ...]
    free_ports: tuple[int, ...]
    router_host: str
    router_port: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A deployment, with its model and its adapters (name to path) found on this machine."""

    deployment: LLMDeployment
    model: str
    adapters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LocalProcess:
    """One engine or the router; `url` is where it answers."""

    command: Command
    url: str
    drain_timeout_s: float


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """What `shoal up` runs. `models`: names that clients may use; `notes`: what differs from a cluster."""

    router: LocalProcess
    replicas: tuple[LocalProcess, ...]
    models: tuple[str, ...]
    notes: tuple[str, ...]


def ports_needed(deployments: Sequence[LLMDeployment]) -> int:
    """HTTP and gRPC for each replica."""
    return 2 * sum(deployment.desired_replicas for deployment in deployments)


def make_plan(placed: Sequence[Placed], machine: Machine, programs: Programs) -> LocalPlan:
    """`placed` holds the deployments with at least one replica. Raises CannotRun."""
    deployments = [each.deployment for each in placed]
    models = [name for each in placed for name in (each.deployment.served_model, *each.adapters)]
    _refuse_repeated("LLMDeployments have the name", [deployment.name for deployment in deployments])
    _refuse_repeated("models have the served name", models)
    threads = max(machine.cpus // sum(deployment.desired_replicas for deployment in deployments), 1)
    ports = iter(machine.free_ports)
    gpus = _share_gpus(deployments, machine.gpus)
    replicas = [
        _replica(each, slot, threads, (next(ports), next(ports)), next(gpus), programs.engine)
        for each in placed
        for slot in range(each.deployment.desired_replicas)
    ]
    return LocalPlan(
        router=_router(deployments, replicas, machine, programs.router),
        replicas=tuple(replicas),
        models=tuple(models),
        notes=tuple(_notes(deployments, machine)),
    )


def _replica(
    placed: Placed,
    slot: int,
    threads: int,
    ports: tuple[int, int],
    gpus: tuple[str, ...],
    program: tuple[str, ...],
) -> LocalProcess:
    deployment, engine = placed.deployment, placed.deployment.spec.engine
    options = serve_options(
        deployment, placed.model, placed.adapters, host=LOOPBACK, port=ports[0], grpc_port=ports[1]
    )
    # The files have been found already, in the revision that the spec names.
    options = options.model_copy(update={"num_threads": engine.num_threads or threads, "revision": None})
    env = {variable.name: variable.value for variable in engine.env if variable.value is not None}
    # A pod sees the accelerators it asked for and no others.
    env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return LocalProcess(
        Command(f"{deployment.name}-{slot}", (*program, *engine.extra_args, *to_args(options)), env),
        f"http://{options.host}:{options.port}",
        options.drain_timeout_s,
    )


def _router(
    deployments: Sequence[LLMDeployment],
    replicas: Sequence[LocalProcess],
    machine: Machine,
    program: tuple[str, ...],
) -> LocalProcess:
    """One router for all; its routing options are those of the first deployment."""
    routing = deployments[0].spec.routing
    longest_s = max(replica.drain_timeout_s for replica in replicas)
    options = RouterOptions(
        **{name: getattr(routing, name) for name in RoutingOptions.model_fields},
        endpoint=tuple(replica.url for replica in replicas),
        host=machine.router_host,
        port=machine.router_port,
        drain_timeout_s=longest_s,
    )
    url = f"http://{_client_host(machine.router_host)}:{machine.router_port}"
    return LocalProcess(Command(ROUTER_NAME, (*program, *to_args(options))), url, longest_s)


def _client_host(host: str) -> str:
    """The host of a URL for what listens at `host`: every interface includes this one."""
    if host in ("0.0.0.0", "::"):
        return LOOPBACK
    return f"[{host}]" if ":" in host else host


def _share_gpus(deployments: Sequence[LLMDeployment], gpus: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The GPUs of each replica, in order; each GPU goes to one replica, as on a cluster."""
    wanted = [_gpus_per_replica(d) for d in deployments for _ in range(d.desired_replicas)]
    if not gpus and all(_runs_without_gpu(deployment) for deployment in deployments):
        return iter([()] * len(wanted))
    if sum(wanted) > len(gpus):
        raise CannotRun(
            f"the replicas want {sum(wanted)} GPUs and this machine has {len(gpus)}: lower spec.replicas or "
            "spec.parallelism, or set spec.resources.acceleratorCount to 0 to serve on the CPU"
        )
    free = iter(gpus)
    return iter([tuple(next(free) for _ in range(count)) for count in wanted])


def _gpus_per_replica(deployment: LLMDeployment) -> int:
    if deployment.accelerators_per_pod == 0:
        return 0
    return deployment.spec.parallelism.tensor * deployment.spec.parallelism.pipeline


def _runs_without_gpu(deployment: LLMDeployment) -> bool:
    """Whether its engine takes the CPU by itself where there is no GPU."""
    return deployment.spec.engine.device != "cuda" and _gpus_per_replica(deployment) <= 1


def _refuse_repeated(what: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise CannotRun(f"{count} {what} {name}: rename all but one")


def _notes(deployments: Sequence[LLMDeployment], machine: Machine) -> Iterator[str]:
    """What a cluster would do otherwise, for the person to know."""
    for deployment in deployments:
        name, engine = deployment.name, deployment.spec.engine
        if _gpus_per_replica(deployment) and not machine.gpus:
            yield f"{name}: there is no GPU here, it runs on the CPU"
        if deployment.spec.routing != deployments[0].spec.routing:
            yield f"{name}: one router serves all, with spec.routing of {deployments[0].name}"
        secret = [variable.name for variable in engine.env if variable.value is None]
        if secret:
            yield f"{name}: {', '.join(secret)} would come from a Secret; here from the environment, if set"
        if engine.env_from:
            yield f"{name}: spec.engine.envFrom is not read here; set the variables in the environment"
