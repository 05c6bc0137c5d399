"""From manifests to command lines: tables, no processes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from shoal_api.flags import parse_flags
from shoal_api.options import RouterOptions, ServeOptions
from shoal_api.serving import serve_options
from shoal_api.spec import LLMDeployment
from shoal_operator.local.errors import CannotRun
from shoal_operator.local.plan import (
    LocalPlan,
    LocalProcess,
    Machine,
    Placed,
    Programs,
    make_plan,
    ports_needed,
)

PROGRAMS = Programs(engine=("engine",), router=("router",))
MACHINE = Machine(
    cpus=8, gpus=(), free_ports=tuple(range(9001, 9041)), router_host="127.0.0.1", router_port=8080
)


def deployment(name: str = "tiny", **spec: Any) -> LLMDeployment:
    """One on the CPU unless `spec` says otherwise; spec in camelCase, as in a manifest."""
    spec = {"model": {"uri": "file:///m"}, "resources": {"acceleratorCount": 0}, **spec}
    return LLMDeployment.parse({"metadata": {"name": name}, "spec": spec})


def plan(*deployments: LLMDeployment, machine: Machine = MACHINE) -> LocalPlan:
    placed = [
        Placed(d, "/m", {adapter.name: f"/a/{adapter.name}" for adapter in d.spec.adapters})
        for d in deployments
    ]
    return make_plan(placed, machine, PROGRAMS)


def options_of(process: LocalProcess) -> ServeOptions:
    """What `shoal serve` makes of the command line."""
    assert process.command.argv[0] == "engine"
    return parse_flags(argparse.ArgumentParser(), ServeOptions, process.command.argv[1:])


def router_of(plan: LocalPlan) -> RouterOptions:
    return parse_flags(argparse.ArgumentParser(), RouterOptions, plan.router.command.argv[1:])


def test_a_replica_gets_the_options_of_a_pod_and_an_address_of_its_own() -> None:
    given = deployment(
        replicas=2,
        model={"uri": "hf://org/name", "revision": "v1", "name": "served"},
        engine={
            "maxModelLen": 512,
            "enablePrefixCaching": False,
            "kvCacheMemoryBytes": 2**30,
            "dtype": "float32",
        },
        adapters=[{"name": "poet", "uri": "file:///poet"}],
        drain={"timeoutSeconds": 7},
    )
    found = plan(given)
    pod = serve_options(given, "/m", {"poet": "/a/poet"})
    for process, http, grpc in zip(found.replicas, (9001, 9003), (9002, 9004), strict=True):
        local = {"host": "127.0.0.1", "port": http, "grpc_port": grpc, "num_threads": 4, "revision": None}
        assert options_of(process) == pod.model_copy(update=local)
        assert process.url == f"http://127.0.0.1:{http}"
        assert process.drain_timeout_s == 7
    assert [process.command.name for process in found.replicas] == ["tiny-0", "tiny-1"]
    assert found.models == ("served", "poet")
    assert found.notes == ()


@pytest.mark.parametrize(
    ("cpus", "replicas", "engine", "threads"),
    [(8, 3, {}, 2), (2, 2, {}, 1), (1, 4, {}, 1), (8, 2, {"numThreads": 3}, 3)],
)
def test_threads_are_divided_among_replicas_unless_the_spec_sets_them(
    cpus: int, replicas: int, engine: dict[str, Any], threads: int
) -> None:
    found = plan(deployment(replicas=replicas, engine=engine), machine=replace(MACHINE, cpus=cpus))
    assert {options_of(process).num_threads for process in found.replicas} == {threads}


def test_threads_are_divided_among_the_replicas_of_all_deployments() -> None:
    found = plan(deployment("a", replicas=3), deployment("b"))
    assert {options_of(process).num_threads for process in found.replicas} == {2}


def test_the_router_knows_every_replica_and_drains_as_long_as_the_slowest() -> None:
    routing = {"strategy": "LeastLoad", "prefixHash": {"prefixChars": 512}}
    found = plan(
        deployment("a", replicas=2, routing=routing, drain={"timeoutSeconds": 5}),
        deployment("b", routing=routing, drain={"timeoutSeconds": 900}),
    )
    options = router_of(found)
    assert options.endpoint == tuple(process.url for process in found.replicas)
    assert len(set(options.endpoint)) == 3
    assert (options.host, options.port, options.drain_timeout_s) == ("127.0.0.1", 8080, 900)
    assert (options.strategy, options.prefix_hash.prefix_chars) == ("LeastLoad", 512)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:8080"), ("::1", "http://[::1]:8080"), ("box.lan", "http://box.lan:8080")],
)
def test_the_url_is_one_that_a_client_here_can_use(host: str, url: str) -> None:
    assert plan(deployment(), machine=replace(MACHINE, router_host=host)).router.url == url


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ({}, 1),
        ({"replicas": 3}, 3),
        ({"replicas": 0}, 0),
        ({"replicas": 3, "suspend": True}, 0),
        ({"replicas": 1, "autoscaling": {"minReplicas": 2, "maxReplicas": 4}}, 2),
    ],
)
def test_ports_are_needed_for_the_replicas_that_run(spec: dict[str, Any], count: int) -> None:
    assert ports_needed([deployment(**spec)]) == 2 * count


def test_extra_args_and_env_reach_the_engine() -> None:
    engine = {"extraArgs": ["--odd", "1"], "env": [{"name": "A", "value": ""}]}
    command = plan(deployment(engine=engine)).replicas[0].command
    assert command.argv[1:3] == ("--odd", "1")
    assert command.env["A"] == ""


GPU = {"acceleratorCount": None}


@pytest.mark.parametrize(
    ("specs", "gpus", "seen"),
    [
        pytest.param([{"replicas": 2}], "0123", ["", ""], id="CPU replicas see no GPU"),
        pytest.param([{"replicas": 2, "resources": {}}], "0123", ["0", "1"], id="one each"),
        pytest.param(
            [{"replicas": 2, "resources": {}, "parallelism": {"tensor": 2}}],
            "0123",
            ["0,1", "2,3"],
            id="tensor",
        ),
        pytest.param(
            [{"resources": {}}, {}, {"resources": {}}], "57", ["5", "", "7"], id="mixed deployments"
        ),
        pytest.param([{"replicas": 2, "resources": {}}], "", ["", ""], id="no GPU here: the CPU"),
    ],
)
def test_each_gpu_goes_to_one_replica(specs: list[dict[str, Any]], gpus: str, seen: list[str]) -> None:
    deployments = [deployment(f"d{number}", **spec) for number, spec in enumerate(specs)]
    found = plan(*deployments, machine=replace(MACHINE, gpus=tuple(gpus)))
    assert [process.command.env["CUDA_VISIBLE_DEVICES"] for process in found.replicas] == seen


@pytest.mark.parametrize(
    ("deployments", "gpus", "says"),
    [
        ([{"replicas": 3, "resources": {}}], "01", "want 3 GPUs and this machine has 2"),
        ([{"resources": {}, "parallelism": {"tensor": 2}}], "", "want 2 GPUs and this machine has 0"),
        ([{"resources": {}, "engine": {"device": "cuda"}}], "", "set spec.resources.acceleratorCount to 0"),
        ([{"model": {"uri": "file:///m", "name": "x"}}] * 2, "", "2 models have the served name x: rename"),
        (
            [{"model": {"uri": "file:///m", "name": "x"}}, {"adapters": [{"name": "x", "uri": "file:///a"}]}],
            "",
            "2 models have the served name x",
        ),
    ],
)
def test_what_this_machine_cannot_run_is_refused(
    deployments: list[dict[str, Any]], gpus: str, says: str
) -> None:
    given = [deployment(f"d{number}", **spec) for number, spec in enumerate(deployments)]
    with pytest.raises(CannotRun, match=says):
        plan(*given, machine=replace(MACHINE, gpus=tuple(gpus)))


def test_two_deployments_of_one_name_are_refused() -> None:
    with pytest.raises(CannotRun, match="2 LLMDeployments have the name tiny: rename"):
        plan(deployment(model={"uri": "file:///m", "name": "x"}), deployment())


SECRET = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s"}}}


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (lambda: [deployment(resources={})], "tiny: there is no GPU here, it runs on the CPU"),
        (lambda: [deployment(engine={"env": [SECRET]})], "tiny: KEY would come from a Secret"),
        (
            lambda: [deployment(engine={"envFrom": [{"secretRef": {"name": "s"}}]})],
            "tiny: spec.engine.envFrom is not",
        ),
        (
            lambda: [deployment("a"), deployment("b", routing={"strategy": "LeastLoad"})],
            "b: one router serves all, with spec.routing of a",
        ),
    ],
)
def test_what_differs_from_a_cluster_is_noted(make: Callable[[], list[LLMDeployment]], note: str) -> None:
    notes = plan(*make()).notes
    assert len(notes) == 1
    assert notes[0].startswith(note)
