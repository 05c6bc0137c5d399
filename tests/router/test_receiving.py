"""Large bodies that come slowly: together they have a bound, and small requests pass beside them."""

from __future__ import annotations

from dataclasses import replace

from shoal_router.listener import ConnectionSettings
from tests.router.conftest import Run
from tests.router.scripted import FAST, Replica, chat, post, rig, until


def test_unfinished_bodies_have_a_bound_together_and_small_ones_pass(run: Run) -> None:
    large, slow = post(body=chat("x" * 70_000)), post(body=chat("y" * 70_000))

    async def scenario() -> None:
        settings = replace(FAST, connection=ConnectionSettings(max_receiving_bytes=100_000))
        async with rig(Replica(), settings=settings) as r:
            listener = r.router._listener
            first, second = await r.connect(), await r.connect()
            first.writer.write(large[:60_000])
            await until(lambda: listener.receiving_bytes > 50_000)
            second.writer.write(slow[:60_000])
            refused = await second.answer()
            assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "router_busy", "1")
            assert refused.headers["connection"] == "close"
            assert listener.receiving_bytes < 60_000, "what was refused is not kept"
            small = await r.connect()
            request = post(body=chat("z" * 8_000))
            small.writer.write(request[:5_000])
            await until(lambda: listener.receiving_bytes > 60_000)
            small.writer.write(request[5_000:])
            assert (await small.answer()).status == 200
            first.writer.write(large[60_000:])
            assert (await first.answer()).status == 200
            assert listener.receiving_bytes == 0
            assert [len(each.body) > 50_000 for each in r.replicas[0].requests] == [False, True]
            leaving = await r.connect()
            leaving.writer.write(large[:60_000])
            await until(lambda: listener.receiving_bytes > 50_000)
            leaving.reset()
            await until(lambda: listener.receiving_bytes == 0)
            for client in (first, second, small):
                client.close()

    run(scenario())
