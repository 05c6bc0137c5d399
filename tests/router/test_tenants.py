"""Tenants behind a full replica: whose turn it is, who is refused at once, and what is left when all is over."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal_router.request import Head, Request
from shoal_router.resume import Progress, rest_of
from shoal_router.routing import Routing
from tests.router.conftest import Run
from tests.router.scripted import FAST, Rig, chat, get, post, rig, until
from tests.router.test_keys import secret_volume
from tests.router.test_overload import Slow, held, known

TENANTS = {"flood": "normal", "polite": "normal", "urgent": "high", "batch": "low"}


def settings(folder: Path, **fields: Any) -> Any:
    keys = [{"name": name, "key": key_of(name), "priority": band} for name, band in TENANTS.items()]
    path = secret_volume(folder, json.dumps({"keys": keys}))
    return replace(FAST, api_keys_file=str(path), **fields)


def key_of(name: str) -> str:
    return f"key-of-tenant-{name}"


async def asking(r: Rig, name: str, content: str = "") -> asyncio.Task[int]:
    """A tenant asks; the task returns the status. Later calls come later."""
    client = await r.connect()
    body = chat(content or name, max_tokens=16)
    client.writer.write(post(body=body, headers=f"Authorization: Bearer {key_of(name)}\r\n"))
    before = len(r.router._proxy.active)
    await until(lambda: len(r.router._proxy.active) > before)

    async def status() -> int:
        answer = await client.answer()
        client.close()
        return answer.status

    return asyncio.ensure_future(status())


async def drain(slow: Slow, count: int) -> list[str]:
    """Serve so many more requests one by one; returns whose they were."""
    done = len(slow.requests)
    for number in range(done + 1, done + count + 1):
        slow.release()
        await until(lambda number=number: len(slow.requests) >= number)
    return slow.asked[done : done + count]


def test_tenant_with_one_request_does_not_wait_behind_anothers_flood(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        slow = Slow()
        async with rig(slow, settings=settings(tmp_path)) as r:
            await known(r)
            tasks = [await asking(r, "flood") for _ in range(8)]
            tasks += [await asking(r, "polite") for _ in range(2)]
            await until(lambda: held(r) == 8)
            order = await drain(slow, 8)
            assert sorted(order[:4]) == ["flood", "flood", "polite", "polite"]
            slow.release(2)
            assert [await task for task in tasks] == [200] * 10
            assert held(r) == 0

    run(scenario())


def test_urgent_requests_go_first_and_idle_ones_last(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        slow = Slow()
        async with rig(slow, settings=settings(tmp_path)) as r:
            await known(r)
            tasks = [await asking(r, "flood") for _ in range(2)]
            for name in ("batch", "polite", "urgent"):
                tasks += [await asking(r, name) for _ in range(2)]
            await until(lambda: held(r) == 6)
            assert await drain(slow, 6) == ["urgent", "urgent", "polite", "polite", "batch", "batch"]
            slow.release(2)
            assert [await task for task in tasks] == [200] * 8

    run(scenario())


def test_flood_leaves_places_for_others(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        slow = Slow()
        async with rig(slow, settings=settings(tmp_path, routing=Routing(queue_s=60, max_queued=4))) as r:
            await known(r)
            tasks = [await asking(r, "flood") for _ in range(4)]
            await until(lambda: held(r) == 2)
            headers = f"Authorization: Bearer {key_of('flood')}\r\n"
            refused = await r.ask(post(headers=headers))
            assert (refused.status, refused.code) == (429, "queue_full")
            assert "(count)" in refused.json["error"]["message"]
            tasks.append(await asking(r, "polite"))
            assert held(r) == 3
            metrics = (await r.ask(get("/metrics"))).raw_body
            assert b'shoal_router_queue_refusals_total{reason="count"} 1' in metrics
            assert b'shoal_router_key_requests_total{key="polite"} 1' in metrics
            slow.release(5)
            assert [await task for task in tasks] == [200] * 5

    run(scenario())


def test_stream_that_goes_on_elsewhere_is_still_its_tenants() -> None:
    request = Request(Head(b"POST", b"/v1/chat/completions", False, True), b"{}")
    request.onward = b"x-shoal-cache-salt: a\r\n"
    progress = Progress(b"state")
    progress.stage = b"tokens"
    assert rest_of(request, progress).onward == request.onward
