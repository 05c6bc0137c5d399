"""Two models behind one URL; a name that nobody serves is 404, one that is being loaded 503 with Retry-After."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import httpx
import pytest

from e2e.deployment import READY_TIMEOUT_S, Deployment
from e2e.kubectl import Cluster
from e2e.load_client import Record
from e2e.routers import ready_routers
from e2e.under_load import ask, under_load
from e2e.waiting import wait_until

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def both(cluster: Cluster, installed: None) -> Iterator[tuple[Deployment, Deployment]]:
    first = Deployment(cluster, "first", model={"name": "fish/cod-135m"})
    second = Deployment(cluster, "second", model={"name": "fish/eel-135m"}, engine={"maxNumSeqs": 4})
    first.apply()
    second.apply()
    try:
        first.wait_settled(1)
        second.wait_settled(1)
        yield first, second
    finally:
        first.delete()
        second.delete()


def test_each_model_is_answered_by_its_own_replicas(
    both: tuple[Deployment, Deployment], router_url: str
) -> None:
    with under_load("two models", router_url, ["fish/cod-135m", "fish/eel-135m", "fish/eel-135m"]) as load:
        time.sleep(10)
        load.wait_for(2)
    for deployment in both:
        pods = {pod["metadata"]["name"] for pod in deployment.pods()}
        assert pods & load.answered_by()
    listed = httpx.get(f"{router_url}/models", trust_env=False).json()["data"]
    assert {"fish/cod-135m", "fish/eel-135m"} <= {each["id"] for each in listed}
    assert ask(router_url, "fish/cod-135m").replica.startswith("first-")
    assert ask(router_url, "fish/eel-135m").replica.startswith("second-")


def test_every_router_is_linked_to_every_engine(
    both: tuple[Deployment, Deployment], cluster: Cluster
) -> None:
    """Engines push load and cache by gRPC: their port is open, and routers know it."""
    pods = {f"default/{pod['metadata']['name']}" for deployment in both for pod in deployment.pods()}
    routers = ready_routers(cluster)
    assert len(pods) == len(routers) == 2
    for router in routers:
        wait_until(partial(router.links_exactly, pods), f"{router.name} is linked to {pods}", 30.0)


def test_an_unknown_model_is_404(both: tuple[Deployment, Deployment], router_url: str) -> None:
    answer = ask(router_url, "fish/unknown")
    assert (answer.status, answer.error) == (404, "model_not_found")


def test_a_model_that_is_being_loaded_is_503_with_retry_after(
    both: tuple[Deployment, Deployment], cluster: Cluster, router_url: str
) -> None:
    third = Deployment(cluster, "third")
    third.apply()
    try:
        answers = ask_until_served(router_url, "third")
    finally:
        third.delete()
    kinds = [each.status for each in answers]
    print(f"\na model that is being loaded: {[(kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)]}")
    while kinds[0] == 404:  # the routers' watch has not brought it yet
        kinds.pop(0)
    assert kinds.pop() == 200
    assert set(kinds) == {503}
    waits = [each.headers.get("retry-after", "") for each in answers if each.status == 503]
    assert all(wait.isdigit() and int(wait) > 0 for wait in waits)


def ask_until_served(router_url: str, model: str) -> list[Record]:
    answers = []
    until = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < until:
        answers.append(ask(router_url, model))
        if answers[-1].status == 200:
            return answers
        time.sleep(0.3)
    raise AssertionError(f"{model} was never served: {answers[-1]}")
