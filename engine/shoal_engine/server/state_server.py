"""Tells routers over gRPC what this engine does and what its cache holds: EngineState of engine_state.proto.

Reads the service, changes nothing. All watchers read one record of changes, each at its own pace; one that is slow
costs no memory, and gets all tags again when what it has missed is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Iterator

import grpc

from shoal_api import engine_state_pb2 as pb
from shoal_api import engine_state_pb2_grpc as rpc
from shoal_api.grpc_port import bind
from shoal_engine.server import health
from shoal_engine.server.service import Service

log = logging.getLogger(__name__)

SHORTEST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 0.8  # below the promised second, so that a late loop does not break the promise
MOST_TAGS = 400_000  # in one message, 8 bytes each: clients take 4 MiB if they are told nothing else
MOST_WATCHERS = 256
STOP_GRACE_S = 0.2
OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port that is taken is an error
    ("grpc.keepalive_time_ms", 20_000),  # a watcher whose machine has vanished is let go
    ("grpc.keepalive_timeout_ms", 10_000),
)


class StateServer(rpc.EngineStateServicer):
    """The API process and its engine process live and die together, so one epoch is enough for both."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tags = service.client.tags
        self._epoch = secrets.randbits(64)
        self._server: grpc.aio.Server | None = None
        self._pulse: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._watchers = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError when the address cannot be had."""
        server = self._server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MOST_WATCHERS)
        rpc.add_EngineStateServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        bound = bind(server, host, port)
        await server.start()
        self._pulse = asyncio.get_running_loop().create_task(self._run())
        return bound

    async def stop(self) -> None:
        """End all streams."""
        if self._pulse is not None:
            self._pulse.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pulse
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)

    async def Watch(  # noqa: N802 - the name is the protocol's
        self, request: pb.WatchRequest, context: object
    ) -> AsyncIterator[pb.Update]:
        """One watcher's stream, until it leaves."""
        log.info("%s watches this engine", request.watcher[:200] or "somebody")
        self._watchers += 1
        place, sequence = -1, 0
        try:
            while True:
                news, updates = self._news, list(self._since(place))
                place = self._tags.end
                for update in updates:
                    sequence += 1
                    update.sequence = sequence
                    yield update
                await news.wait()
        finally:
            self._watchers -= 1

    def _since(self, place: int) -> Iterator[pb.Update]:
        """The updates for who has read up to `place`; -1: nothing yet."""
        changes = self._tags.since(place) if place >= 0 else None
        if changes is not None:
            yield self._update(stored=changes.stored, evicted=changes.evicted)
            return
        held = list(self._tags.held)
        for start in range(0, max(len(held), 1), MOST_TAGS):
            yield self._update(snapshot=not start, stored=held[start : start + MOST_TAGS])

    def _update(
        self, *, snapshot: bool = False, stored: list[int], evicted: list[int] | None = None
    ) -> pb.Update:
        cost = self._service.metrics.stats.step_cost
        return pb.Update(
            epoch=self._epoch,
            snapshot=snapshot,
            stored=stored,
            evicted=evicted,
            load=self._load(),
            step_cost=None
            if cost is None
            else pb.StepCost(
                base_s=cost.base_s, prefill_token_s=cost.prefill_token_s, sequence_s=cost.sequence_s
            ),
        )

    def _load(self) -> pb.Load:
        stats, ready = self._service.metrics.stats, self._service.client.ready
        load = pb.Load(
            running=stats.num_running,
            waiting=stats.num_waiting,
            queued_prefill_tokens=stats.queued_prefill_tokens,
            kv_usage=stats.kv_cache_usage,
            ready=health.readiness(self._service)[1] == 200,
        )
        if ready is not None:
            load.kv_capacity_tokens = (ready.num_blocks - 1) * ready.block_tokens  # one is the null block
            load.max_num_seqs = ready.max_num_seqs
            load.max_requests = ready.max_requests
        return load

    async def _run(self) -> None:
        told: tuple[int, pb.Load] | None = None
        told_s, loop = 0.0, asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SHORTEST_PAUSE_S)
            if not self._watchers:
                continue
            now = self._tags.end, self._load()
            if now != told or loop.time() - told_s >= LONGEST_PAUSE_S:
                told, told_s = now, loop.time()
                news, self._news = self._news, asyncio.Event()
                news.set()
