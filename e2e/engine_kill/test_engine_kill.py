"""An engine dies by SIGKILL while a client streams. Requests that had not begun to answer lose nothing.

Those that had get a typed error within two seconds: what was said cannot be taken back, and resuming is not built yet.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from e2e.deployment import Deployment
from e2e.kubectl import Cluster
from e2e.load_client import Record
from e2e.processes import kill, pids_of
from e2e.under_load import Load
from e2e.waiting import wait_until

pytestmark = pytest.mark.timeout(900)

ERROR_WITHIN_S = 2.0
BEGUN_CHARS = 60  # of several hundred
TYPED = {"replica_lost", "engine_unavailable"}  # the router's word, and a dying engine's own


@pytest.fixture(scope="module")
def deployment(cluster: Cluster, installed: None) -> Iterator[Deployment]:
    made = Deployment(cluster, "kill", replicas=2)
    made.apply()
    try:
        made.wait_settled(2)
        yield made
    finally:
        made.delete()


@pytest.mark.parametrize("words", ["", "--socket-fd"], ids=["every process", "engine process"])
def test_sigkill(words: str, deployment: Deployment, router_url: str, request: pytest.FixtureRequest) -> None:
    """Of the victim's processes those whose command line has `words` are killed."""
    title = f"SIGKILL of {request.node.callspec.id} of an engine pod"
    load = Load(title, router_url, [deployment.name], max_tokens=96).start()
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
    assert total.failed, "nobody was hit"
    late = [(each.ended_s or 0.0) - killed_s for each in total.failed]
    print(
        f"\n{len(late)} answers were cut; their errors came after {', '.join(f'{each:.2f} s' for each in late)}"
    )
    assert [str(each) for each in total.failed if not is_cut_answer(each, killed_s)] == []
    assert len(load.answered_by(killed_s)) == 2


def is_cut_answer(record: Record, killed_s: float) -> bool:
    """Its text had begun, and it ended in time with an error of the API, never as if it were whole."""
    in_time = record.ended_s is not None and record.ended_s - killed_s <= ERROR_WITHIN_S
    return (
        record.started and record.sent_s < killed_s and in_time and record.error in TYPED and not record.done
    )


def answering(load: Load) -> str | None:
    """The pod of a stream that has begun and is far from its end."""
    begun = (each for each in list(load.records)[-30:] if 0 < len(each.text) < BEGUN_CHARS)
    return next((each.replica for each in begun if each.ended_s is None), None)


def restarts_of(deployment: Deployment) -> int:
    statuses = [each for pod in deployment.pods() for each in pod["status"].get("containerStatuses", ())]
    return sum(each["restartCount"] for each in statuses)
