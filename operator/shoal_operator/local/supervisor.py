"""Keep one process running: start it, watch its probes, restart it when it dies, and say why it died."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from shoal_operator.local.causes import Cause, cause_of
from shoal_operator.local.lifeline import Lifeline
from shoal_operator.local.probes import Loading, Probe, Ready
from shoal_operator.local.processes import Command, Death, Process
from shoal_operator.local.replica_state import ReplicaState, State
from shoal_operator.local.restart_policy import Record, RestartPolicy, after_death, restart_delay_s


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a process is asked, and how long it may say nothing new; the numbers of the pods' probes."""

    ready_period_s: float = 0.25
    stall_s: float = 300.0
    health_period_s: float = 10.0
    health_failures: int = 3


class Audience(Protocol):
    """Who is told what happens; the terminal in `shoal up`."""

    def progress(self, state: ReplicaState) -> None: ...

    def line(self, name: str, text: str) -> None: ...

    def died(self, name: str, cause: Cause, delay_s: float) -> None: ...


class GivenUp(Exception):
    """A process that cannot be started; `cause` is for the user."""

    def __init__(self, name: str, cause: Cause, attempts: int) -> None:
        super().__init__(f"{name} {cause.text}")
        self.name = name
        self.cause = cause
        self.attempts = attempts


class Supervisor:
    """One process and its lives. `run` is its whole story; `ready` is set once it has been ready."""

    def __init__(
        self,
        command: Command,
        probe: Probe,
        lifeline: Lifeline,
        audience: Audience,
        policy: RestartPolicy,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = command.name
        self.ready = asyncio.Event()
        self._command = command
        self._probe = probe
        self._lifeline = lifeline
        self._audience = audience
        self._policy = policy
        self._patience = patience
        self._clock = clock
        self._stopping = asyncio.Event()
        self._killed = False
        self._process: Process | None = None
        self._watch: asyncio.Task[str] | None = None
        self._state: ReplicaState | None = None
        self._served_since_s: float | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def run(self) -> None:
        """Start, and start again after each death, until stop(). Raises GivenUp."""
        record = Record()
        while not self._stopping.is_set():
            cause = await self._live()
            if self._stopping.is_set():
                break
            record = after_death(record, self._policy, self._served_s())
            delay_s = restart_delay_s(record, self._policy, cause.permanent)
            if delay_s is None:
                raise GivenUp(self.name, cause, record.failures)
            self._audience.died(self.name, cause, delay_s)
            self._enter(State.RESTARTING)
            await _wait_for(self._stopping, delay_s)
        self._enter(State.STOPPED)

    def stop(self) -> None:
        """Ask it to drain and stop, and never start it again."""
        self._stopping.set()
        if self._watch is not None:
            self._watch.cancel()  # a draining process is not ready, and that is no fault
        if self._process is not None:
            self._enter(State.DRAINING)
            self._process.terminate()

    def kill(self) -> None:
        """End it now, with everything it has started."""
        self._killed = True
        self.stop()
        if self._process is not None:
            self._process.kill()

    async def _live(self) -> Cause:
        """One life, from start to death."""
        self._served_since_s = None
        self._enter(State.STARTING)
        try:
            process = await Process.start(self._command, self._lifeline, self._print)
        except OSError as error:
            return Cause(f"cannot be started: {error}", permanent=True)
        self._process = process
        if self._stopping.is_set():  # while it was being started
            self.kill() if self._killed else self.stop()
        try:
            return await self._until_death(process)
        finally:
            self._process = None

    async def _until_death(self, process: Process) -> Cause:
        end = asyncio.create_task(process.wait())
        self._watch = asyncio.create_task(self._find_fault())
        if self._stopping.is_set():
            self._watch.cancel()
        await asyncio.wait({end, self._watch}, return_when=asyncio.FIRST_COMPLETED)
        fault = self._watch.result() if self._watch.done() and not self._watch.cancelled() else None
        if fault is not None:
            process.kill()
        death: Death = await end
        self._watch.cancel()
        return cause_of(death.returncode, death.last_lines, fault)

    async def _find_fault(self) -> str:
        """Watch a process until something is wrong with it; returns what."""
        if not await self._becomes_ready():
            return f"made no progress in loading for {self._patience.stall_s:.0f} s and was killed"
        self._served_since_s = self._clock()
        self.ready.set()
        self._enter(State.READY)
        failures = 0
        while failures < self._patience.health_failures:
            await asyncio.sleep(self._patience.health_period_s)
            failures = 0 if await self._probe.alive() else failures + 1
        return f"did not answer /health {failures} times in a row and was killed"

    async def _becomes_ready(self) -> bool:
        """False when it has said nothing new for `stall_s`."""
        progress, progress_at_s = Loading(), self._clock()
        while True:
            answer = await self._probe.readiness()
            if isinstance(answer, Ready):
                return True
            if isinstance(answer, Loading) and answer != progress:
                progress, progress_at_s = answer, self._clock()
                self._enter(State.LOADING if answer.phase else State.STARTING, answer)
            elif self._clock() - progress_at_s > self._patience.stall_s:
                return False
            await asyncio.sleep(self._patience.ready_period_s)

    def _served_s(self) -> float | None:
        return None if self._served_since_s is None else self._clock() - self._served_since_s

    def _enter(self, state: State, loading: Loading | None = None) -> None:
        loading = loading or Loading()
        now = ReplicaState(self.name, state, self._clock(), loading.phase, loading.done, loading.total)
        if self._state is not None and now.follows(self._state):
            now = replace(now, since_s=self._state.since_s)
        if now != self._state:
            self._state = now
            self._audience.progress(now)

    def _print(self, line: str) -> None:
        self._audience.line(self.name, line)


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return
