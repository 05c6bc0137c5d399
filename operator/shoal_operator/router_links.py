"""What the routers say: one gRPC subscription per router pod, and the newest state of each. Decides nothing.

A router that cannot be reached is tried again for as long as it is listed; its last state grows old and stops counting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc

from shoal_api.router_state_pb2 import ObserveRequest, State
from shoal_api.router_state_pb2_grpc import RouterStateStub

log = logging.getLogger(__name__)

FRESH_S = 6.0  # a router speaks at least every 2 s: two missed words and a bit
RETRY_S = 0.5
MAX_STATE_BYTES = 64 * 2**20
# A peer that is gone without a goodbye is noticed by HTTP/2 pings, not by TCP after a quarter of an hour.
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", MAX_STATE_BYTES),
)


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest state of one router, and when it came on this process's clock."""

    state: State
    at_s: float


class RouterLinks:
    """`set_routers` says which there are; `changed` is called after every new state. Needs a running event loop."""

    def __init__(
        self, observer: str, changed: Callable[[State], None], *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._observer = observer
        self._changed = changed
        self._now = now
        self._addresses: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._heard: dict[str, Heard] = {}

    def set_routers(self, addresses: Mapping[str, str]) -> None:
        """Name -> HOST:PORT of every router pod there is; subscriptions to others end."""
        for name in [name for name in self._tasks if self._addresses[name] != addresses.get(name)]:
            self._tasks.pop(name).cancel()
            self._heard.pop(name, None)
        self._addresses = dict(addresses)
        for name, address in addresses.items():
            if name not in self._tasks:
                self._tasks[name] = asyncio.get_running_loop().create_task(self._follow(name, address))

    def fresh(self) -> list[State]:
        """The newest state of every router that has spoken lately."""
        oldest_s = self._now() - FRESH_S
        return [heard.state for heard in self._heard.values() if heard.at_s >= oldest_s]

    async def close(self) -> None:
        """End all subscriptions."""
        tasks = list(self._tasks.values())
        self.set_routers({})
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, name: str, address: str) -> None:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._listen(name, address)
            await asyncio.sleep(RETRY_S)

    async def _listen(self, name: str, address: str) -> None:
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            stub = RouterStateStub(channel)  # type: ignore[no-untyped-call]  # generated
            call = stub.Observe(ObserveRequest(observer=self._observer))
            async for state in call:
                if name not in self._heard:
                    log.info("router %s at %s answers", name, address)
                self._heard[name] = Heard(state, self._now())
                self._changed(state)
