"""Router and replicas as one thing: start together, drain in order, stop. Says nothing itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from shoal_operator.local.supervisor import Supervisor

STOP_MARGIN_S = 15.0  # beyond the drain timeout before SIGKILL, as between drain and grace period of a pod


@dataclass(frozen=True, slots=True)
class Replica:
    supervisor: Supervisor
    drain_timeout_s: float


class Fleet:
    """`start`, `wait_ready` or `wait_failed`, then `drain` or `kill`; in the end every process is gone."""

    def __init__(
        self, router: Supervisor, replicas: Sequence[Replica], stop_margin_s: float = STOP_MARGIN_S
    ) -> None:
        self._router = router
        self._replicas = tuple(replicas)
        self._stop_margin_s = stop_margin_s
        self._runs: dict[Supervisor, asyncio.Task[None]] = {}
        self._killed: list[str] = []

    @property
    def _supervisors(self) -> tuple[Supervisor, ...]:
        return (self._router, *(replica.supervisor for replica in self._replicas))

    def start(self) -> None:
        for supervisor in self._supervisors:
            self._runs[supervisor] = asyncio.create_task(supervisor.run(), name=supervisor.name)

    async def wait_ready(self) -> None:
        """Until each process has been ready once."""
        await asyncio.gather(*(supervisor.ready.wait() for supervisor in self._supervisors))

    async def wait_failed(self) -> None:
        """Raises what ends the first supervisor, GivenUp above all; does not return before."""
        done, _ = await asyncio.wait(self._runs.values(), return_when=asyncio.FIRST_COMPLETED)
        for run in done:
            run.result()

    async def drain(self) -> tuple[str, ...]:
        """Refuse new requests, let running ones end, stop all. Returns the names that had to be killed.

        The router goes first: it stops listening and leaves when its last stream has ended. An engine is
        told when the router has left or its own drain timeout has passed, so no request finds the engine
        closed behind an open router.
        """
        self._router.stop()
        longest_s = max((replica.drain_timeout_s for replica in self._replicas), default=0.0)
        router_end = self._runs[self._router]
        await asyncio.gather(
            self._end(self._router, longest_s + self._stop_margin_s),
            *(self._drain_replica(replica, router_end) for replica in self._replicas),
        )
        return tuple(self._killed)

    def kill(self) -> None:
        """SIGKILL everything; a drain in progress then ends at once."""
        for supervisor in self._supervisors:
            supervisor.kill()

    async def _drain_replica(self, replica: Replica, router_end: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + replica.drain_timeout_s
        await asyncio.wait({router_end}, timeout=replica.drain_timeout_s)
        replica.supervisor.stop()
        left_s = max(deadline_s - loop.time(), 0.0)
        await self._end(replica.supervisor, left_s + self._stop_margin_s)

    async def _end(self, supervisor: Supervisor, timeout_s: float) -> None:
        run = self._runs[supervisor]
        await asyncio.wait({run}, timeout=timeout_s)
        if not run.done():
            self._killed.append(supervisor.name)
            supervisor.kill()
            await asyncio.wait({run})
        run.exception()  # one that gave up meanwhile has nothing to add
