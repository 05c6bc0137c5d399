"""One stream per engine that pushes its state: keeps the index exact and the load fresh. Costs no request anything.

An engine says in its metrics where it pushes. Its first update is a snapshot of its cache; then come changes,
with load and step cost. A lost update is found by its number and healed by a snapshot from a new stream. While
a stream is down the replica is polled (health.py) and its cache is believed (believed_cache.py), as that of an
engine that never pushes. What an update means is engine_updates.py's.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Final

import grpc

from shoal_api import engine_state_pb2 as pb
from shoal_api import engine_state_pb2_grpc as rpc
from shoal_router.endpoints import Endpoint, EndpointSet
from shoal_router.engine_updates import Place, Reading, reading, report_of
from shoal_router.prefix_index import PrefixIndex
from shoal_router.reported_cache import ReportedCache
from shoal_router.standing import Outcome, State

log = logging.getLogger(__name__)

SILENCE_S: Final = 3.0  # an engine speaks every second
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
SLICE_BLOCKS: Final = 4096  # applied without letting other tasks run: about a millisecond
CHANNEL: Final = (
    ("grpc.max_receive_message_length", 256 * 1024 * 1024),  # a snapshot has 8 bytes per block of prompt
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)

# Opens a stream: target as HOST:PORT and who asks. Ends or raises when the stream does.
Open = Callable[[str, str], AsyncGenerator[pb.Update, None]]


async def watch(target: str, watcher: str) -> AsyncGenerator[pb.Update, None]:
    """The updates of the engine at `target`. Raises grpc.aio.AioRpcError."""
    async with grpc.aio.insecure_channel(target, options=CHANNEL) as channel:
        stub = rpc.EngineStateStub(channel)  # type: ignore[no-untyped-call]
        async for update in stub.Watch(pb.WatchRequest(watcher=watcher)):
            yield update


class EngineLinks:
    """A link for each endpoint whose engine pushes. `learn` is told what its steps cost."""

    def __init__(
        self,
        endpoints: EndpointSet,
        index: PrefixIndex,
        *,
        watcher: str,
        now: Callable[[], float],
        observe: Callable[[Endpoint, Outcome], None],
        learn: Callable[[Endpoint, pb.StepCost], None],
        open_stream: Open = watch,
    ) -> None:
        self.index = index
        self.watcher = watcher
        self.now = now
        self.observe = observe
        self.learn = learn
        self.open_stream = open_stream
        self.endpoints = endpoints
        self._links: dict[Endpoint, _Link] = {}
        endpoints.on_change.append(self._look)
        endpoints.on_remove.append(self._end)

    async def stop(self) -> None:
        """End all streams."""
        tasks = [link.task for link in self._links.values()]
        for endpoint in list(self._links):
            self._end(endpoint)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _look(self) -> None:
        for endpoint in self.endpoints:
            port = endpoint.report.grpc_port
            link = self._links.get(endpoint)
            if link is not None and link.port != port:
                self._end(endpoint)
                link = None
            if port and link is None:
                self._links[endpoint] = _Link(self, endpoint, port)

    def _end(self, endpoint: Endpoint) -> None:
        if (link := self._links.pop(endpoint, None)) is not None:
            link.end()


class _Link:
    """The stream of one engine, opened again and again."""

    def __init__(self, links: EngineLinks, endpoint: Endpoint, port: int) -> None:
        host = endpoint.address.host
        self.port = port
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._links = links
        self._endpoint = endpoint
        self._epoch = 0
        self.task = asyncio.get_running_loop().create_task(self._run())

    def end(self) -> None:
        """Follow the engine no more."""
        self.task.cancel()
        self._down("")  # now, and not when the task ends: by then another link may have begun

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            updates = self._endpoint.tally.updates
            try:
                if await self._follow():
                    await asyncio.sleep(FIRST_PAUSE_S)
                    continue  # a gap: the engine is there, and what is known stays until the snapshot
                why = "the engine ended it"
            except grpc.aio.AioRpcError as error:
                why = error.details() or error.code().name
            except TimeoutError:
                why = f"nothing came for {SILENCE_S:g} s"
            except Exception:
                log.exception("bug in the link to %s", self._endpoint.name)
                why = "a bug"
            if self._endpoint.tally.updates > updates:
                pause_s = FIRST_PAUSE_S
            self._down(why)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _follow(self) -> bool:
        """Read one stream; returns whether it is to be opened again at once for a snapshot."""
        place: Place | None = None
        async with aclosing(self._links.open_stream(self._target, self._links.watcher)) as updates:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    update = await anext(updates, None)
                if update is None:
                    return False
                how = reading(place, update)
                if how is Reading.GAP:
                    self._endpoint.tally.gaps += 1
                    # A stream that begins with a gap would do so again and again.
                    return place is not None
                place = Place.of(update)
                await self._apply(update, how)

    async def _apply(self, update: pb.Update, how: Reading) -> None:
        endpoint, index = self._endpoint, self._links.index
        if update.epoch != self._epoch:
            self._epoch = update.epoch
            index.forget(endpoint.slot)
            # Should polling resume, another start time than before must not empty the index once more.
            endpoint.report = replace(endpoint.report, started_at_s=0.0)
        cache = index.report(endpoint.slot)
        if how is Reading.ALL:
            endpoint.tally.snapshots += 1
            cache.keep_only(set(update.stored))
        await self._change(cache, update)
        cache.updated()
        self._tell(update)
        if not endpoint.linked:
            endpoint.linked = True
            log.info("replica %s pushes its state: %d blocks cached", endpoint.name, len(cache.stored))

    async def _change(self, cache: ReportedCache, update: pb.Update) -> None:
        for apply, blocks in ((cache.evict, update.evicted), (cache.store, update.stored)):
            for start in range(0, len(blocks), SLICE_BLOCKS):
                if start:
                    await asyncio.sleep(0)
                apply(blocks[start : start + SLICE_BLOCKS])

    def _tell(self, update: pb.Update) -> None:
        endpoint, links, load = self._endpoint, self._links, update.load
        endpoint.tally.updates += 1
        report = report_of(load, endpoint.report)
        endpoint.take(report, endpoint.in_flight, load.queued_prefill_tokens)
        links.endpoints.loaded()
        endpoint.reported_s = links.now()
        if update.HasField("step_cost"):
            links.learn(endpoint, update.step_cost)
        if not load.ready and endpoint.state is not State.ABSENT:
            links.observe(endpoint, Outcome.NOT_READY)

    def _down(self, why: str) -> None:
        endpoint = self._endpoint
        if endpoint.removed:
            return  # its slot may be another's by now
        if endpoint.linked and why:
            log.warning("replica %s pushes no more: %s; it is polled until it does", endpoint.name, why)
        endpoint.linked = False
        endpoint.queued_elsewhere = 0.0
        self._links.index.believe(endpoint.slot)
