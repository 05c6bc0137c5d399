"""A mirror holds what the API server holds, whatever happens to the watch in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shoal_api.kube import ApiError, Object
from shoal_api.mirror import Mirror, key_of


def pod(name: str, version: int) -> Object:
    return {"metadata": {"namespace": "n", "name": name, "resourceVersion": str(version)}}


def listing(*items: Object, version: int, token: str = "") -> Object:
    return {"items": list(items), "metadata": {"resourceVersion": str(version), "continue": token}}


class ScriptedApi:
    """Answers lists and watches in order; a watch is a list of events, an exception among them is raised."""

    def __init__(self, lists: list[Object | ApiError], watches: list[list[Object | ApiError]]) -> None:
        self.lists = lists
        self.watches = watches
        self.asked: list[dict[str, str]] = []
        self.spent = asyncio.Event()

    async def request(self, method: str, path: str, *, params: dict[str, str]) -> Object:
        assert (method, path) == ("GET", "/pods")
        self.asked.append(params)
        reply = self.lists.pop(0)
        if isinstance(reply, ApiError):
            raise reply
        return reply

    async def stream(self, path: str, *, params: dict[str, str], silence_s: float) -> AsyncIterator[Object]:
        self.asked.append(params)
        if not self.watches:
            self.spent.set()
            await asyncio.Event().wait()
        for event in self.watches.pop(0):
            if isinstance(event, ApiError):
                raise event
            yield event


async def follow(api: ScriptedApi, **options: str) -> tuple[Mirror, list[tuple[str, bool]]]:
    """Run a mirror until the script is spent; also the changes it told, as (key, exists)."""
    told: list[tuple[str, bool]] = []
    mirror = Mirror(api, "/pods", lambda key, each: told.append((key, each is not None)), **options)
    task = asyncio.create_task(mirror.run())
    await asyncio.wait_for(api.spent.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return mirror, told


def added(each: Object) -> Object:
    return {"type": "ADDED", "object": each}


async def test_it_reads_every_page_and_then_watches_from_there():
    api = ScriptedApi(
        [listing(pod("a", 1), version=5, token="more"), listing(pod("b", 2), version=5)],
        [[{"type": "DELETED", "object": pod("a", 6)}, added(pod("c", 7))]],
    )
    mirror, told = await follow(api, selector="role=engine")
    assert set(mirror.objects) == {"n/b", "n/c"}
    assert told == [("n/a", True), ("n/b", True), ("n/a", False), ("n/c", True)]
    assert api.asked[1]["continue"] == "more"
    assert api.asked[2]["resourceVersion"] == "5"
    assert {each["labelSelector"] for each in api.asked} == {"role=engine"}


async def test_a_watch_that_ends_goes_on_where_it_was():
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "40"}}}
    api = ScriptedApi([listing(version=1)], [[added(pod("a", 2)), bookmark], []])
    mirror, told = await follow(api)
    assert api.asked[2]["resourceVersion"] == "40"
    assert told == [("n/a", True)]
    assert set(mirror.objects) == {"n/a"}


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}},
        ApiError(0, "Unreachable", "silent"),
        ApiError(410, "Expired", "too old"),
        ApiError(429, "TooManyRequests", "slow down", retry_after_s=0.01),
    ],
    ids=["expired in the stream", "silence", "expired at once", "too many requests"],
)
async def test_what_was_missed_is_found_by_listing_anew(broken: Object | ApiError):
    api = ScriptedApi(
        [
            listing(pod("gone", 1), pod("same", 2), pod("new", 3), version=3),
            listing(pod("same", 2), pod("new", 9), version=9),
        ],
        [[broken]],
    )
    mirror, told = await follow(api)
    assert {key: each["metadata"]["resourceVersion"] for key, each in mirror.objects.items()} == {
        "n/same": "2",
        "n/new": "9",
    }
    assert told[3:] == [("n/gone", False), ("n/new", True)]


async def test_a_list_that_fails_is_tried_again():
    api = ScriptedApi([ApiError(500, "InternalError", "etcd"), listing(pod("a", 1), version=1)], [])
    mirror, _ = await follow(api)
    assert mirror.synced.is_set()
    assert set(mirror.objects) == {"n/a"}


async def test_its_age_is_that_of_the_last_word():
    clock = [0.0]
    api = ScriptedApi([listing(version=1)], [[]])
    mirror = Mirror(api, "/pods", lambda *_: None, now=lambda: clock[0])
    clock[0] = 12.0
    assert mirror.age_s == 12.0
    task = asyncio.create_task(mirror.run())
    await asyncio.wait_for(api.spent.wait(), 10)
    assert mirror.age_s == 0.0
    task.cancel()


def test_a_cluster_wide_object_has_an_empty_namespace():
    assert key_of({"metadata": {"name": "x"}}) == "/x"
