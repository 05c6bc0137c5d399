"""The operator's calls, and what a real API server makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from shoal_api.kube import ApiError, ApiServer
from shoal_api.mirror import Mirror
from shoal_api.names import ANNOTATION_DRAIN, LABEL_DEPLOYMENT
from shoal_operator.cluster import LWS_API, Cluster, LeaseObject, path_of
from shoal_operator.lease import Lease

ROOT = Path(__file__).parents[2]
CRD = "llmdeployments.serving.shoal.dev"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
async def api(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with ApiServer.from_env() as server:
        try:
            await server.request("POST", CRDS, yaml.safe_load((ROOT / "crds" / f"{CRD}.yaml").read_text()))
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
        while not await Cluster(server).served("serving.shoal.dev/v1alpha1"):
            await asyncio.sleep(0.1)
        yield server


@pytest.fixture
async def namespace(api: ApiServer) -> str:
    name = f"n-{uuid4().hex[:8]}"
    await api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return name


def pod(namespace: str, name: str = "p-0") -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {LABEL_DEPLOYMENT: "p"}},
        "spec": {"containers": [{"name": "engine", "image": "none"}]},
    }


async def deployment(api: ApiServer, namespace: str, **spec: object) -> dict:
    body = yaml.safe_load((ROOT / "examples" / "smollm2.yaml").read_text())
    body["metadata"]["namespace"] = namespace
    body["spec"].update(spec)
    return await api.request("POST", path_of("LLMDeployment", namespace), body)


async def test_a_second_create_is_a_conflict(api: ApiServer, namespace: str):
    cluster = Cluster(api)
    await cluster.create(pod(namespace))
    with pytest.raises(ApiError) as caught:
        await cluster.create(pod(namespace))
    assert caught.value.reason == "AlreadyExists"
    assert [each["metadata"]["name"] for each in await cluster.owned("Pod", namespace, "p")] == ["p-0"]


async def test_a_dry_run_creates_nothing_and_says_what_is_wrong(api: ApiServer, namespace: str):
    cluster = Cluster(api)
    await cluster.create(pod(namespace), dry_run=True)
    assert await cluster.get("Pod", namespace, "p-0") is None
    broken = pod(namespace)
    broken["spec"]["containers"][0]["volumeMounts"] = [{"name": "nowhere", "mountPath": "/x"}]
    with pytest.raises(ApiError, match="nowhere"):
        await cluster.create(broken, dry_run=True)
    # Without its strictness Kubernetes would make an emptyDir of this.
    misspelt = pod(namespace)
    misspelt["spec"]["volumes"] = [{"name": "x", "wormhole": {}}]
    with pytest.raises(ApiError, match="wormhole") as caught:
        await cluster.create(misspelt, dry_run=True)
    assert caught.value.status == 400


async def test_a_delete_hits_the_object_it_means(api: ApiServer, namespace: str):
    cluster = Cluster(api)
    made = await cluster.create(pod(namespace))
    with pytest.raises(ApiError) as caught:
        await cluster.delete("Pod", namespace, "p-0", str(uuid4()))
    assert caught.value.conflict
    await cluster.delete("Pod", namespace, "p-0", made["metadata"]["uid"])
    await cluster.delete("Pod", namespace, "p-0", made["metadata"]["uid"])
    assert await cluster.get("Pod", namespace, "p-0") is None


async def test_a_drain_begins_is_taken_back_and_hits_the_pod_it_means(api: ApiServer, namespace: str):
    cluster = Cluster(api)
    made = await cluster.create(pod(namespace))
    uid, since = made["metadata"]["uid"], datetime.now(UTC).isoformat()
    drained = await cluster.annotate("Pod", namespace, "p-0", uid, ANNOTATION_DRAIN, since)
    assert drained["metadata"]["annotations"] == {ANNOTATION_DRAIN: since}
    back = await cluster.annotate("Pod", namespace, "p-0", uid, ANNOTATION_DRAIN, None)
    assert not back["metadata"].get("annotations")
    with pytest.raises(ApiError) as caught:
        await cluster.annotate("Pod", namespace, "p-0", str(uuid4()), ANNOTATION_DRAIN, since)
    assert caught.value.status == 422
    assert not (await cluster.owned("Pod", namespace, "p"))[0]["metadata"].get("annotations")


async def test_an_apply_leaves_what_others_own_and_changes_nothing_twice(api: ApiServer, namespace: str):
    cluster = Cluster(api)
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": "c"},
        "data": {"ours": "1"},
    }
    first = await cluster.apply(body)
    again = await cluster.apply(body)
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    theirs = {"metadata": {"labels": {"team": "a"}}, "data": {"theirs": "2"}}
    await cluster._merge(path_of("ConfigMap", namespace, "c"), theirs, "somebody")
    last = await cluster.apply({**body, "data": {"ours": "3"}})
    assert last["data"] == {"ours": "3", "theirs": "2"}


async def test_scaling_writes_replicas_alone_and_only_what_was_read(api: ApiServer, namespace: str):
    cluster = Cluster(api)
    made = await deployment(api, namespace)
    await cluster.scale(made, 5)
    found = await cluster.get("LLMDeployment", namespace, "smollm2")
    assert found is not None
    assert found["spec"] == {**made["spec"], "replicas": 5}
    managers = {each["manager"]: each.get("subresource") for each in found["metadata"]["managedFields"]}
    assert managers["shoal-autoscaler"] == "scale"
    with pytest.raises(ApiError) as caught:
        await cluster.scale(made, 7)
    assert caught.value.conflict


async def test_a_status_is_written_once_and_only_on_what_was_read(api: ApiServer, namespace: str):
    cluster = Cluster(api)
    made = await deployment(api, namespace)
    written = await cluster.write_status(made, {"replicas": 2, "routableReplicas": 1})
    assert (written["status"]["replicas"], written["status"]["routableReplicas"]) == (2, 1)
    assert written["metadata"]["generation"] == made["metadata"]["generation"]
    same = await cluster.write_status(written, written["status"])
    assert same["metadata"]["resourceVersion"] == written["metadata"]["resourceVersion"]
    with pytest.raises(ApiError) as caught:
        await cluster.write_status(made, {"replicas": 3})
    assert caught.value.conflict


async def test_a_group_that_is_not_installed_is_not_served(api: ApiServer):
    assert not await Cluster(api).served(LWS_API)


async def test_two_operators_and_one_lease(api: ApiServer, namespace: str):
    a = Lease(LeaseObject(api, namespace, "op"), "a")
    b = Lease(LeaseObject(api, namespace, "op"), "b")
    await a._step()
    await b._step()
    assert (a.held, b.held) == (True, False)
    await a.release()
    await b._step()
    assert (a.held, b.held) == (False, True)


async def test_a_mirror_follows_a_real_collection(api: ApiServer, namespace: str):
    changes: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
    mirror = Mirror(
        api,
        path_of("Pod", namespace),
        lambda key, each: changes.put_nowait((key, each is not None)),
        selector=f"{LABEL_DEPLOYMENT}=p",
    )
    cluster = Cluster(api)
    made = await cluster.create(pod(namespace))
    task = asyncio.create_task(mirror.run())
    assert await asyncio.wait_for(changes.get(), 20) == (f"{namespace}/p-0", True)
    other = pod(namespace, "other")
    other["metadata"]["labels"] = {}
    await cluster.create(other)
    await cluster.delete("Pod", namespace, "p-0", made["metadata"]["uid"])
    while (change := await asyncio.wait_for(changes.get(), 20)) != (f"{namespace}/p-0", False):
        assert change[0] == f"{namespace}/p-0"  # it may be seen with its deletion timestamp first
    task.cancel()
