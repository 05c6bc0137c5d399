"""An engine dies by SIGKILL while a client streams: nobody notices but by a pause.

Requests that had not begun to answer go to the other replica. Streams that had are continued there, with the text that
they would have had: the same questions are asked again afterwards, undisturbed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from e2e.deployment import Deployment
from e2e.kubectl import Cluster
from e2e.load_client import Record
from e2e.processes import kill, pids_of
from e2e.routers import metric_of_all
from e2e.under_load import Load, ask_again, failures
from e2e.waiting import wait_until

pytestmark = pytest.mark.timeout(900)

MAX_TOKENS = 96
BEGUN_CHARS = 60  # of several hundred


@pytest.fixture(scope="module")
def deployment(cluster: Cluster, installed: None) -> Iterator[Deployment]:
    # In float32 an answer does not depend on what is computed beside it, so that texts can be compared.
    made = Deployment(cluster, "kill", replicas=2, engine={"dtype": "float32"})
    made.apply()
    try:
        made.wait_settled(2)
        yield made
    finally:
        made.delete()


@pytest.mark.parametrize("words", ["", "--socket-fd"], ids=["every process", "engine process"])
def test_sigkill(
    words: str, deployment: Deployment, cluster: Cluster, router_url: str, request: pytest.FixtureRequest
) -> None:
    """Of the victim's processes those whose command line has `words` are killed."""
    title = f"SIGKILL of {request.node.callspec.id} of an engine pod"
    resumed_before = metric_of_all(cluster, "resumes_total", "outcome").get("resumed", 0.0)
    load = Load(title, router_url, [deployment.name], max_tokens=MAX_TOKENS).start()
    try:
        pids = {pod["metadata"]["name"]: pids_of(pod["metadata"]["uid"], words) for pod in deployment.pods()}
        restarts = restarts_of(deployment)
        time.sleep(3)
        victim = wait_until(lambda: answering(load), "a stream that has begun", 30.0, period_s=0.01)
        killed_s = time.time()
        kill(pids[victim])
        wait_until(
            lambda: restarts_of(deployment) > restarts, "the engine starts again", 120.0, deployment.describe
        )
        deployment.wait_settled(2)
        load.wait_for(2, since_s=killed_s)
    finally:
        total = load.stop()
    assert not total.failed, failures(total)
    assert len(load.answered_by(killed_s)) == 2
    outcomes = metric_of_all(cluster, "resumes_total", "outcome")
    resumed = outcomes["resumed"] - resumed_before
    assert resumed > 0, outcomes
    interrupted = [each for each in load.records if was_open(each, victim, killed_s)]
    assert len(interrupted) >= resumed
    expected = ask_again(router_url, deployment.name, [each.question for each in interrupted], MAX_TOKENS)
    print(f"\n{resumed:.0f} streams continued elsewhere; {len(interrupted)} texts compared")
    assert {each.question: each.text for each in interrupted} == expected


def was_open(record: Record, victim: str, killed_s: float) -> bool:
    """A stream of the victim (its first replica) that had not ended when the victim was killed."""
    ended_s = record.ended_s or 0.0
    return record.streamed and record.replica == victim and record.sent_s < killed_s < ended_s


def answering(load: Load) -> str | None:
    """The pod of a stream that has begun and is far from its end."""
    begun = (each for each in list(load.records)[-30:] if 0 < len(each.text) < BEGUN_CHARS)
    return next((each.replica for each in begun if each.ended_s is None), None)


def restarts_of(deployment: Deployment) -> int:
    statuses = [each for pod in deployment.pods() for each in pod["status"].get("containerStatuses", ())]
    return sum(each["restartCount"] for each in statuses)
