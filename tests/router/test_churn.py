"""Churn in small: a router's index while caches overflow, engines restart, updates are lost and links are cut.

benchmarks/router/churn.py is the same with real engines.
"""

from __future__ import annotations

import asyncio
import base64
import random
import struct
from collections import OrderedDict
from contextlib import AsyncExitStack

from shoal_router.app import Router
from tests.router.conftest import Run
from tests.router.engine_state import EngineTwin, pushing
from tests.router.scripted import Received, Replica, chat, post, rig, until

CAPACITY = 60
PROMPTS = 20  # of about 12 blocks, on two engines


class CachingReplica(Replica):
    """Keeps the chains of its requests in an LRU cache, and pushes what that holds."""

    def __init__(self, twin: EngineTwin, port: int) -> None:
        super().__init__(script=self._answer, metrics=b"shoal:grpc_port %d\n" % port)
        self.twin = twin
        self._lru: OrderedDict[int, None] = OrderedDict()

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        body = b'{"usage":{"prompt_tokens":750,"prompt_tokens_details":{"cached_tokens":0}}}'
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        chain = request.headers.get("x-shoal-chain")
        if chain is not None:
            self._store(chain)
        writer.write(head % len(body) + body)

    def _store(self, told: str) -> None:
        text = told.partition(";")[2]
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        chain = struct.unpack(f">{len(data) // 8}Q", data)
        before = set(self._lru)
        for block in reversed(chain):
            self._lru[block] = None
            self._lru.move_to_end(block)
        while len(self._lru) > CAPACITY:
            self._lru.popitem(last=False)
        after = set(self._lru)
        self.twin.change(stored=after - before, evicted=before - after)

    def forget(self) -> None:
        """As if it had been started anew."""
        self._lru.clear()
        self.twin.epoch += 1
        self.twin.cache = set()
        self.twin.end()


def known(router: Router, slot: int) -> set[int] | None:
    reported = router.index.reported(slot)
    return None if reported is None else set(reported.blocks)


def test_index_is_what_the_engines_hold_after_churn_and_every_kind_of_loss(run: Run) -> None:
    async def scenario() -> None:
        rng = random.Random(5)
        twins = [EngineTwin(), EngineTwin()]
        async with AsyncExitStack() as stack:
            ports = [await stack.enter_async_context(pushing(twin)) for twin in twins]
            replicas = [CachingReplica(twin, port) for twin, port in zip(twins, ports, strict=True)]
            r = await stack.enter_async_context(rig(*replicas))
            await until(lambda: all(endpoint.linked for endpoint in r.router.endpoints))
            for number in range(160):
                prompt = f"{rng.randrange(PROMPTS)} " * 1500
                assert (await r.ask(post(body=chat(prompt + str(number))))).status == 200
                if number % 40 == 10:
                    await until(lambda: all(endpoint.linked for endpoint in r.router.endpoints))
                if number == 40:
                    twins[0].lose(stored={1, 2, 3})
                elif number == 80:
                    twins[1].end()
                elif number == 120:
                    replicas[0].forget()

            def agree() -> bool:
                for twin in twins:
                    twin.change()  # as once a second
                return all(known(r.router, slot) == twin.cache for slot, twin in enumerate(twins))

            await until(agree)
            tallies = [endpoint.tally for endpoint in r.router.endpoints]
            assert sum(tally.gaps for tally in tallies) == 1
            assert sum(tally.snapshots for tally in tallies) >= 4, "at the start, and after each loss"
            assert sum(len(twin.cache) for twin in twins) > CAPACITY / 2

    run(scenario())
