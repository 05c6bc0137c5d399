"""The operator's probes, over HTTP."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest

from shoal_operator.probe_server import STALE_S, ProbeServer


async def ask(path: str, *ages_s: float, leader: bool = True) -> httpx.Response:
    watched = SimpleNamespace(mirrors=[SimpleNamespace(age_s=age) for age in ages_s], holds_lease=leader)
    server = ProbeServer(watched, 0)
    task = asyncio.create_task(server.run())
    await asyncio.wait_for(server.started.wait(), 10)
    async with httpx.AsyncClient() as client:
        reply = await client.get(f"http://127.0.0.1:{server.port}{path}")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return reply


async def test_a_standby_is_healthy():
    reply = await ask("/healthz", 1.0, 2.5, leader=False)
    assert (reply.status_code, reply.json()) == (200, {"watch_age_s": 2.5, "leader": False})


async def test_one_dead_watch_is_enough_to_be_restarted():
    assert (await ask("/healthz", 1.0, STALE_S + 1)).status_code == 503


async def test_prometheus_sees_age_and_leader():
    text = (await ask("/metrics", 7.0)).text
    assert "shoal_operator_watch_age_seconds 7.0" in text
    assert "shoal_operator_leader 1.0" in text
