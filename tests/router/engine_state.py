"""An engine's EngineState for tests: a cache and a load that a test sets, pushed to any number of watchers over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from shoal_api import engine_state_pb2 as pb
from shoal_api import engine_state_pb2_grpc as rpc


class EngineTwin(rpc.EngineStateServicer):
    """`change` stores and evicts and tells all watchers at once; `lose` does so and tells nobody."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.cache: set[int] = set()
        self.load = pb.Load(ready=True, max_num_seqs=8)
        self.step_cost: pb.StepCost | None = None
        self.watchers: list[asyncio.Queue[pb.Update | None]] = []
        self.watched = 0
        self.silent = False

    async def Watch(  # noqa: N802 - the name is the protocol's
        self, request: pb.WatchRequest, context: object
    ) -> AsyncIterator[pb.Update]:
        self.watched += 1
        mine: asyncio.Queue[pb.Update | None] = asyncio.Queue()
        self.watchers.append(mine)
        sequence = 1
        yield self._update(sequence, snapshot=True, stored=sorted(self.cache))
        while (update := await mine.get()) is not None:
            sequence += 1
            if not update.HasField("load"):
                continue  # a lost one: it has a number all the same
            update.sequence = sequence
            yield update

    def _update(self, sequence: int = 0, **fields: object) -> pb.Update:
        update = pb.Update(epoch=self.epoch, sequence=sequence, load=self.load, **fields)  # type: ignore[arg-type]
        if self.step_cost is not None:
            update.step_cost.CopyFrom(self.step_cost)
        return update

    def change(self, stored: set[int] | None = None, evicted: set[int] | None = None) -> None:
        self._keep(stored, evicted)
        for watcher in self.watchers:
            watcher.put_nowait(self._update(stored=sorted(stored or ()), evicted=sorted(evicted or ())))

    def lose(self, stored: set[int] | None = None, evicted: set[int] | None = None) -> None:
        self._keep(stored, evicted)
        for watcher in self.watchers:
            watcher.put_nowait(pb.Update())

    def end(self) -> None:
        """End all streams."""
        for watcher in self.watchers:
            watcher.put_nowait(None)
        self.watchers = []

    def _keep(self, stored: set[int] | None, evicted: set[int] | None) -> None:
        self.cache = self.cache - (evicted or set()) | (stored or set())


@asynccontextmanager
async def pushing(twin: EngineTwin, port: int = 0) -> AsyncIterator[int]:
    """The twin behind a real port."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    rpc.add_EngineStateServicer_to_server(twin, server)  # type: ignore[no-untyped-call]
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        twin.end()
        await server.stop(None)
