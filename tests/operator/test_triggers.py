"""What makes the operator look again, and what does not."""

from __future__ import annotations

from shoal_api.names import LABEL_DEPLOYMENT
from shoal_api.router_state_pb2 import STANDING_CORDONED, STANDING_ROUTABLE, Endpoint, Model, State
from shoal_operator.triggers import changed_keys, deployment_key, expected_routers, outlines, serving_routers

OWNERS = {"n/p-0": "n/p", "n/q-0": "n/q"}


def state(
    *, standing: int = STANDING_ROUTABLE, in_flight: int = 5, held: int = 0, sequence: int = 1
) -> State:
    return State(
        router="r",
        sequence=sequence,
        synced=True,
        endpoints=[
            Endpoint(namespace="n", pod="p-0", uid="1", standing=standing, in_flight=in_flight),
            Endpoint(namespace="n", pod="q-0", uid="2", standing=STANDING_ROUTABLE, in_flight=1),
        ],
        models=[Model(namespace="n", deployment="p", held=held, arrivals=sequence)],
    )


def test_traffic_alone_is_no_reason():
    old = outlines([state()], OWNERS)
    assert changed_keys(old, outlines([state(in_flight=9, sequence=2)], OWNERS)) == []


def test_only_the_deployment_concerned_is_looked_at():
    old = outlines([state()], OWNERS)
    for new in (state(standing=STANDING_CORDONED), state(in_flight=0), state(held=3)):
        assert changed_keys(old, outlines([new], OWNERS)) == ["n/p"]


def test_a_router_that_falls_silent_concerns_all_that_it_served():
    assert changed_keys(outlines([state()], OWNERS), outlines([], OWNERS)) == ["n/p", "n/q"]


def test_an_endpoint_of_nobody_is_ignored():
    assert set(outlines([state()], {})) == {"n/p"}


def router(name: str, *, ip: str | None = "10.0.0.1", ready: bool = True, ending: bool = False) -> dict:
    metadata = {"namespace": "n", "name": name, **({"deletionTimestamp": "x"} if ending else {})}
    ready_condition = {"type": "Ready", "status": str(ready)}
    return {"metadata": metadata, "status": {"podIP": ip, "conditions": [ready_condition]}}


def test_an_ending_router_is_listened_to_and_has_no_say():
    pods = [
        router("a"),
        router("b", ready=False),
        router("c", ending=True),
        router("d", ip=None, ready=False),
    ]
    assert set(serving_routers(pods)) == {"a", "b", "c"}
    assert expected_routers(pods) == 1


def test_an_address_of_version_six_is_bracketed():
    assert serving_routers([router("a", ip="fd00::1")]) == {"a": "[fd00::1]:9000"}


def test_a_pod_names_its_deployment():
    pod = router("p-0")
    assert deployment_key(pod) is None
    pod["metadata"]["labels"] = {LABEL_DEPLOYMENT: "p"}
    assert deployment_key(pod) == "n/p"
