"""Routers that ask for keys, from a Secret named in the chart's values; a changed Secret counts without a restart.

What limits and tenants do is tests/router's; this is the way from a Secret to a running router.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from e2e.conftest import RELEASE, SMALL
from e2e.deployment import Deployment
from e2e.kubectl import Cluster
from e2e.routers import ROUTERS, Router, ready_routers
from e2e.waiting import wait_until

pytestmark = pytest.mark.timeout(900)

SECRET = "e2e-keys"
FIRST, SECOND = "sk-e2e-the-first-key", "sk-e2e-the-second-key"
SECRET_TIMEOUT_S = 180.0  # the kubelet looks at a pod's Secrets once a minute, or when the pod changes


@pytest.fixture(scope="module")
def routers(cluster: Cluster, installed: None) -> Iterator[list[Router]]:
    """Of the release with FIRST as its only key; afterwards they ask for none again."""
    write_keys(cluster, [{"name": "first", "key": FIRST, "requestsPerMinute": 1000}])
    values = ("--set", f"router.apiKeys.existingSecret={SECRET}")
    try:
        cluster.helm("upgrade", *RELEASE, *SMALL, *values, "--wait", "--timeout", "5m")
        yield wait_until(partial(settled, cluster), "routers with keys", 120.0)
    finally:
        cluster.helm("upgrade", *RELEASE, *SMALL, "--wait", "--timeout", "5m")
        cluster.delete("secret", SECRET)


@pytest.fixture(scope="module")
def deployment(cluster: Cluster, routers: list[Router]) -> Iterator[Deployment]:
    made = Deployment(cluster, "keys")
    made.apply()
    try:
        made.wait_settled(1)
        yield made
    finally:
        made.delete()


def test_only_a_right_key_is_let_in(routers: list[Router], deployment: Deployment) -> None:
    for router in routers:
        wait_until(partial(is_let_in, router, FIRST), f"{router.name} serves the model", 60.0)
        answer = chat(router, FIRST)
        assert answer.json()["choices"][0]["message"]["content"]
        assert answer.headers["x-ratelimit-limit-requests"] == "1000"
        for wrong in ("", SECOND):
            refused = chat(router, wrong)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{router.url}/health", trust_env=False).status_code == 200


def test_a_changed_secret_counts_without_a_restart(
    routers: list[Router], deployment: Deployment, cluster: Cluster
) -> None:
    write_keys(cluster, [{"name": "second", "key": SECOND}])
    looked(cluster)
    for router in routers:
        wait_until(partial(is_let_in, router, SECOND), f"{router.name} has the new key", SECRET_TIMEOUT_S)
        assert chat(router, FIRST).status_code == 401
    assert settled(cluster) == routers


def test_a_broken_secret_changes_nothing(
    routers: list[Router], deployment: Deployment, cluster: Cluster
) -> None:
    write_keys(cluster, [{"name": "second", "key": "e2e-tiny"}])
    looked(cluster)
    for router in routers:
        wait_until(partial(finds_unusable, router), f"{router.name} has read it", SECRET_TIMEOUT_S)
        assert chat(router, SECOND).status_code == 200
        assert "e2e-tiny" not in cluster.kubectl("logs", router.name)
    assert settled(cluster) == routers


def write_keys(cluster: Cluster, keys: list[dict[str, Any]]) -> None:
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET},
            "stringData": {"keys.yaml": json.dumps({"keys": keys})},
        }
    )


def looked(cluster: Cluster) -> None:
    """An annotation makes the kubelet look at the routers now rather than within a minute."""
    cluster.kubectl("annotate", "pods", "-l", ROUTERS, "--overwrite", f"e2e/looked={time.time()}")


def settled(cluster: Cluster) -> list[Router] | None:
    """The ready routers, once no other router pod is there."""
    found = ready_routers(cluster)
    return found if len(found) == len(cluster.list("pods", ROUTERS)) else None


def chat(router: Router, key: str) -> httpx.Response:
    body = {"model": "keys", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{router.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=60.0, trust_env=False)


def is_let_in(router: Router, key: str) -> bool:
    return chat(router, key).status_code == 200


def finds_unusable(router: Router) -> bool:
    return router.metric("key_file_usable", "") == {"": 0.0}
