"""One `shoal up` from start to end: run a plan's processes until asked to stop or one cannot start."""

from __future__ import annotations

import asyncio
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from shoal_operator.local.fleet import STOP_MARGIN_S, Fleet, Replica
from shoal_operator.local.interrupts import Interrupts
from shoal_operator.local.lifeline import Lifeline
from shoal_operator.local.plan import LocalPlan, LocalProcess
from shoal_operator.local.probes import Probe, Ready
from shoal_operator.local.progress import Terminal, duration
from shoal_operator.local.restart_policy import RestartPolicy
from shoal_operator.local.supervisor import GivenUp, Patience, Supervisor

MODELS_PERIOD_S = 0.1


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """`ready_file` exists from when everything is ready to the end; None: no file."""

    policy: RestartPolicy = field(default_factory=RestartPolicy)
    patience: Patience = field(default_factory=Patience)
    stop_margin_s: float = STOP_MARGIN_S
    ready_file: Path | None = None


class Session:
    """The processes of one plan and the person who watches them."""

    def __init__(
        self,
        plan: LocalPlan,
        terminal: Terminal,
        lifeline: Lifeline,
        client: httpx.AsyncClient,
        settings: SessionSettings,
    ) -> None:
        self._plan = plan
        self._terminal = terminal
        self._client = client
        self._ready_file = settings.ready_file
        self._started_s = time.monotonic()

        def supervise(process: LocalProcess, patience: Patience) -> Supervisor:
            probe = Probe(client, process.url)
            return Supervisor(process.command, probe, lifeline, terminal, settings.policy, patience)

        # The router is ready when an engine is: how long that takes is the engines' affair.
        self._router = supervise(plan.router, replace(settings.patience, stall_s=math.inf))
        self._replicas = [supervise(replica, settings.patience) for replica in plan.replicas]
        drains = (replica.drain_timeout_s for replica in plan.replicas)
        self._fleet = Fleet(self._router, list(map(Replica, self._replicas, drains)), settings.stop_margin_s)

    async def run(self) -> int:
        """Start, serve, drain; the exit code of `shoal up`. Leaves no process behind."""
        interrupts = Interrupts()
        self._fleet.start()
        try:
            failure = await self._serve(interrupts)
            if interrupts.first.is_set():
                self._terminal.say("draining: no new requests, running ones end; Ctrl-C again kills them")
            killed = await self._drain_or_kill(interrupts)
        except BaseException:
            self._fleet.kill()
            raise
        finally:
            if self._ready_file is not None:
                self._ready_file.unlink(missing_ok=True)
        if interrupts.second.is_set():
            return interrupts.exit_code
        if killed:
            self._terminal.say(f"killed after the drain timeout: {', '.join(killed)}", style="bold red")
        elif failure is None:
            self._terminal.say("stopped")
        return 1 if failure is not None or killed else 0

    async def _serve(self, interrupts: Interrupts) -> GivenUp | None:
        """Until the first interrupt, or until a process has been given up, which it returns."""
        failed = asyncio.create_task(self._until_failure())
        asked = asyncio.create_task(interrupts.first.wait())
        either: set[asyncio.Task[Any]] = {failed, asked}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        self._terminal.end_progress()
        if not failed.done():
            failed.cancel()
            return None
        try:
            failed.result()
        except GivenUp as failure:
            times = f"given up after {failure.attempts} starts" if failure.attempts > 1 else "given up"
            self._terminal.failure(failure.name, failure.cause, f"{times}, stopping everything")
            return failure
        raise AssertionError("a fleet ends by being asked to or by failing")

    async def _until_failure(self) -> None:
        """Raises what ends the fleet; says meanwhile when all of it is ready."""
        announcement = asyncio.create_task(self._announce_ready())
        failed = asyncio.create_task(self._fleet.wait_failed())
        try:
            done, _ = await asyncio.wait({announcement, failed}, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            announcement.cancel()
            failed.cancel()

    async def _drain_or_kill(self, interrupts: Interrupts) -> tuple[str, ...]:
        drain = asyncio.create_task(self._fleet.drain())
        impatient = asyncio.create_task(interrupts.second.wait())
        await asyncio.wait({drain, impatient}, return_when=asyncio.FIRST_COMPLETED)
        impatient.cancel()
        if not drain.done():
            self._fleet.kill()
        return await drain

    async def _announce_ready(self) -> None:
        await self._fleet.wait_ready()
        models = await self._served_models()
        self._terminal.end_progress()
        seconds = duration(time.monotonic() - self._started_s)
        self._terminal.say(f"ready in {seconds}", style="bold green")
        for line in ready_lines(self._plan.router.url, models):
            self._terminal.say(line)
        if self._ready_file is not None:
            write_whole(self._ready_file, json.dumps(self._facts()))

    async def _served_models(self) -> list[str]:
        """What the router serves, once it knows all of the plan: it hears of replicas later than we do."""
        probe = Probe(self._client, self._plan.router.url)
        while True:
            ready = await probe.readiness()
            models = await probe.models()
            knows_replicas = isinstance(ready, Ready) and ready.replicas >= len(self._plan.replicas)
            if knows_replicas and set(self._plan.models) <= set(models):
                return models
            await asyncio.sleep(MODELS_PERIOD_S)

    def _facts(self) -> dict[str, Any]:
        """For programs that wait for us: where everything listens, and under which process id."""
        processes = zip(
            (self._plan.router, *self._plan.replicas), (self._router, *self._replicas), strict=True
        )
        found = [{"name": s.name, "url": p.url, "pid": s.pid} for p, s in processes]
        return {"url": self._plan.router.url, "router": found[0], "replicas": found[1:]}


def ready_lines(url: str, models: list[str]) -> list[str]:
    """The banner: where to send requests, for which models, and one to try."""
    body = json.dumps({"model": models[0], "messages": [{"role": "user", "content": "Say hello."}]})
    return [
        f"  url     {url}/v1",
        f"  models  {', '.join(models)}",
        f"  try     curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'",
        "  Ctrl-C drains and stops everything",
    ]


def write_whole(path: Path, text: str) -> None:
    """Replace `path` at once: a reader never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
