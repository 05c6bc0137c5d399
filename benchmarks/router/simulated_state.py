"""EngineState.Watch of a simulated engine: what it holds and does, pushed to the routers that watch it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from itertools import count

import grpc
from simulated_cache import BLOCK_TOKENS, Changes
from simulated_scheduler import Engine

from shoal_api import engine_state_pb2 as pb
from shoal_api import engine_state_pb2_grpc as rpc

SHORTEST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0


class State(rpc.EngineStateServicer):
    """One engine's service."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._epoch = random.getrandbits(64)

    async def Watch(self, request: pb.WatchRequest, context: object) -> AsyncIterator[pb.Update]:  # noqa: N802
        cache, changes = self._engine.cache, Changes()
        cache.watchers.add(changes)
        try:
            numbers = count(1)
            yield self._update(next(numbers), snapshot=True, stored=cache.tags, evicted=[])
            while True:
                for _ in range(round(LONGEST_PAUSE_S / SHORTEST_PAUSE_S)):
                    await asyncio.sleep(SHORTEST_PAUSE_S)
                    if changes.of or self._engine.running or self._engine.waiting:
                        break
                changed, changes.of = changes.of, {}
                stored = [tag for tag, there in changed.items() if there]
                evicted = [tag for tag, there in changed.items() if not there]
                yield self._update(next(numbers), snapshot=False, stored=stored, evicted=evicted)
        finally:
            cache.watchers.discard(changes)

    def _update(self, number: int, *, snapshot: bool, stored: list[int], evicted: list[int]) -> pb.Update:
        engine, speed = self._engine, self._engine.speed
        return pb.Update(
            epoch=self._epoch,
            sequence=number,
            snapshot=snapshot,
            stored=stored,
            evicted=evicted,
            load=pb.Load(
                running=len(engine.running),
                waiting=len(engine.waiting),
                queued_prefill_tokens=engine.queued_prefill_tokens,
                kv_usage=engine.kv_usage,
                kv_capacity_tokens=speed.cache_blocks * BLOCK_TOKENS,
                max_num_seqs=speed.max_running,
                ready=True,
            ),
            step_cost=pb.StepCost(
                base_s=speed.step_s,
                prefill_token_s=speed.prefill_per_token_s,
                sequence_s=speed.step_per_sequence_s,
            ),
        )


async def serve_state(engine: Engine) -> None:
    """Push the engine's state on its gRPC port."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    rpc.add_EngineStateServicer_to_server(State(engine), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"127.0.0.1:{engine.grpc_port}")
    await server.start()
    engine.state = server  # gRPC ends a server that nobody refers to
