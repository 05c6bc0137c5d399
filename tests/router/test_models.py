"""The merged model list and who may serve a model."""

from __future__ import annotations

import json

import msgspec
import pytest

from shoal_router.discovery import Address
from shoal_router.endpoints import Endpoint, Report
from shoal_router.errors import BadRequest, ModelNotFound, NoReplicaReady
from shoal_router.model_listing import read_listing
from shoal_router.models import ModelTable
from shoal_router.pool import Pool
from shoal_router.standing import ABSENT, HEALTHY, Standing, State

SUSPECT = Standing(State.SUSPECT, 0, 1, 10.0)
DESERTED = Standing(State.SUSPECT, 0, 1, 10.0, unreachable=True)
HALF_OPEN = Standing(State.HALF_OPEN, 0, 1, 10.0)


def endpoint(name: str, standing: Standing = HEALTHY, *models: str) -> Endpoint:
    address = Address(name, "127.0.0.1", 1)
    listing = tuple((model, json.dumps({"id": model, "owned_by": name}).encode()) for model in models)
    return Endpoint(address, 0, Pool(address, 1.0), standing=standing, report=Report(listing))


CASES = {
    "healthy ones only": ([("a", HEALTHY), ("b", SUSPECT), ("c", ABSENT)], ["a"]),
    "half-open ones too": ([("a", HEALTHY), ("b", HALF_OPEN)], ["a", "b"]),
    "all ejected: panic": ([("a", SUSPECT), ("b", SUSPECT), ("c", ABSENT)], ["a", "b"]),
    "half ejected: no panic": ([("a", HEALTHY), ("b", SUSPECT)], ["a"]),
    "more than half ejected: panic": ([("a", HEALTHY), ("b", SUSPECT), ("c", SUSPECT)], ["a", "b", "c"]),
    "most are gone: no panic": ([("a", HEALTHY), ("b", DESERTED), ("c", DESERTED)], ["a"]),
    "a panic leaves out who is gone": ([("a", SUSPECT), ("b", DESERTED)], ["a"]),
    "nobody but those that seem gone": ([("a", DESERTED), ("b", DESERTED)], ["a", "b"]),
}


@pytest.mark.parametrize("name", CASES)
def test_routable_replicas_of_a_model(name: str) -> None:
    states, expected = CASES[name]
    endpoints = [endpoint(n, standing, "m") for n, standing in states] + [endpoint("z", HEALTHY, "other")]
    assert [e.name for e in ModelTable(endpoints).routable("m")] == expected


def test_model_whose_replicas_are_all_absent_is_known_but_not_ready() -> None:
    table = ModelTable([endpoint("a", ABSENT, "m"), endpoint("b", HEALTHY, "other")])
    with pytest.raises(NoReplicaReady) as caught:
        table.routable(table.resolve("m"))
    assert caught.value.retry_after_s is not None


def test_unknown_model_is_told_the_known_ones() -> None:
    table = ModelTable([endpoint("a", HEALTHY, "zeta", "alpha"), endpoint("b", ABSENT, "beta")])
    with pytest.raises(ModelNotFound, match="alpha, beta, zeta"):
        table.resolve("gamma")
    with pytest.raises(ModelNotFound) as caught:
        table.resolve("x" * 10_000)
    assert len(str(caught.value)) < 300


def test_nothing_is_unknown_before_any_replica_has_spoken() -> None:
    table = ModelTable([endpoint("a", ABSENT)])
    for model in ("m", None):
        with pytest.raises(NoReplicaReady):
            table.resolve(model)


def test_model_may_be_left_out_when_there_is_only_one() -> None:
    assert ModelTable([endpoint("a", HEALTHY, "m"), endpoint("b", HEALTHY, "m")]).resolve(None) == "m"
    with pytest.raises(BadRequest, match="m, n"):
        ModelTable([endpoint("a", HEALTHY, "n", "m")]).resolve(None)


def test_listing_has_each_model_once_as_its_first_replica_describes_it() -> None:
    table = ModelTable([endpoint("a", HEALTHY, "m"), endpoint("b", HEALTHY, "m", "n")])
    listing = json.loads(table.listing())
    assert listing == {"object": "list", "data": [{"id": "m", "owned_by": "a"}, {"id": "n", "owned_by": "b"}]}
    assert json.loads(table.entry("n")) == {"id": "n", "owned_by": "b"}
    with pytest.raises(ModelNotFound):
        table.entry("o")


def test_changes_are_seen_after_they_are_announced() -> None:
    one = endpoint("a", HEALTHY, "m")
    table = ModelTable([one])
    assert table.routable("m") == (one,)
    one.standing = ABSENT
    one.report = Report((("m", b"{}"), ("n", b"{}")))
    table.changed()
    assert list(table.known()) == ["m", "n"]
    with pytest.raises(NoReplicaReady):
        table.routable("m")


def test_listing_of_a_replica_is_read_strictly() -> None:
    assert read_listing(b'{"object":"list","data":[{"id":"m","x":1}]}') == (("m", b'{"id":"m","x":1}'),)
    assert read_listing(b'{"data":[]}') == ()
    for broken in (b"", b"[]", b'{"data":[{"name":"m"}]}', b'{"data":{}}'):
        with pytest.raises(msgspec.MsgspecError):
            read_listing(broken)
