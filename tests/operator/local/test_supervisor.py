"""Lives and deaths of one process: a fake engine follows a script, the supervisor reacts."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shoal_operator.local.causes import Cause
from shoal_operator.local.lifeline import Lifeline
from shoal_operator.local.ports import free_ports
from shoal_operator.local.probes import Probe
from shoal_operator.local.processes import Command
from shoal_operator.local.replica_state import ReplicaState, State
from shoal_operator.local.restart_policy import RestartPolicy
from shoal_operator.local.supervisor import GivenUp, Patience, Supervisor
from tests.operator.local.liveness import wait_gone

FAKE_ENGINE = Path(__file__).parent / "programs/fake_engine.py"
WAIT_S = 20.0
PATIENCE = Patience(ready_period_s=0.02, stall_s=1.0, health_period_s=0.02, health_failures=3)

POLICY = RestartPolicy(first_delay_s=0.01, max_delay_s=0.05)


class Notebook:
    """An audience that remembers."""

    def __init__(self) -> None:
        self.states: list[ReplicaState] = []
        self.lines: list[str] = []
        self.deaths: list[tuple[Cause, float]] = []

    def progress(self, state: ReplicaState) -> None:
        self.states.append(state)

    def line(self, name: str, text: str) -> None:
        self.lines.append(text)

    def died(self, name: str, cause: Cause, delay_s: float) -> None:
        self.deaths.append((cause, delay_s))


class Stage:
    """Supervises fake engines that live as told, and ends them after the test."""

    def __init__(self, folder: Path, client: httpx.AsyncClient, lifeline: Lifeline) -> None:
        self._folder = folder
        self._client = client
        self._lifeline = lifeline
        self.notebook = Notebook()
        self.port = free_ports(1)[0]

    def supervise(
        self, *lives: dict[str, Any], policy: RestartPolicy = POLICY, program: str = sys.executable
    ) -> Supervisor:
        script = self._folder / "script.json"
        script.write_text(json.dumps(lives))
        argv = (program, str(FAKE_ENGINE), str(script), f"--port={self.port}", "model")
        return Supervisor(
            Command("tiny-0", argv),
            Probe(self._client, f"http://127.0.0.1:{self.port}"),
            self._lifeline,
            self.notebook,
            policy,
            PATIENCE,
        )


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    with Lifeline() as lifeline:
        async with httpx.AsyncClient(trust_env=False) as client:
            yield Stage(tmp_path, client, lifeline)


async def end(supervisor: Supervisor, run: asyncio.Task[None]) -> None:
    supervisor.stop()
    await asyncio.wait_for(run, WAIT_S)


async def test_loading_is_reported_until_ready_and_stop_ends_it(stage: Stage) -> None:
    supervisor = stage.supervise({"load_s": 0.3})
    run = asyncio.create_task(supervisor.run())
    await asyncio.wait_for(supervisor.ready.wait(), WAIT_S)
    await end(supervisor, run)
    states = [state.state for state in stage.notebook.states]
    assert list(dict.fromkeys(states)) == [
        State.STARTING, State.LOADING, State.READY, State.DRAINING, State.STOPPED,
    ]  # fmt: skip
    loading = [state for state in stage.notebook.states if state.state is State.LOADING]
    assert [state.done for state in loading] == sorted({state.done for state in loading})
    assert {(state.phase, state.total, state.since_s) for state in loading} == {
        ("weights", 300_000, loading[0].since_s)
    }
    assert stage.notebook.deaths == []


@pytest.mark.parametrize(
    ("life", "reason"),
    [
        ({"exit": 4, "stderr": "no such tensor"}, "exited with code 4"),
        ({"signal": signal.SIGSEGV}, "was killed by SIGSEGV"),
        ({"load_s": None, "stuck": True}, "made no progress in loading for 1 s"),
    ],
)
async def test_one_that_never_gets_ready_is_given_up_after_three_starts(
    life: dict[str, Any], reason: str, stage: Stage
) -> None:
    supervisor = stage.supervise(life)
    with pytest.raises(GivenUp) as error:
        await asyncio.wait_for(supervisor.run(), WAIT_S)
    assert error.value.cause.text.startswith(reason)
    assert error.value.attempts == 3
    assert [delay_s for _, delay_s in stage.notebook.deaths] == [0.01, 0.02]
    assert list(error.value.cause.last_lines) == ([life["stderr"]] if "stderr" in life else [])


async def test_program_that_cannot_be_executed_is_given_up_at_once(stage: Stage) -> None:
    supervisor = stage.supervise(program="/no/such/program")
    with pytest.raises(GivenUp, match=r"tiny-0 cannot be started: .*No such file"):
        await supervisor.run()
    assert stage.notebook.deaths == []


@pytest.mark.parametrize(
    ("life", "reason"),
    [
        ({"signal": signal.SIGKILL, "exit_after_s": 0.5}, "was killed by SIGKILL"),
        ({"exit": 0, "exit_after_s": 0.5}, "exited with code 0 (nobody asked it to stop)"),
        ({"healthy": False}, "did not answer /health 3 times in a row and was killed"),
    ],
)
async def test_one_that_has_served_is_restarted_and_its_death_explained(
    life: dict[str, Any], reason: str, stage: Stage
) -> None:
    supervisor = stage.supervise(life, {"exit": 1}, {"exit": 1}, {"exit": 1}, {"exit": 1}, {})
    run = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(WAIT_S):
        while [state.state for state in stage.notebook.states].count(State.READY) < 2:
            await asyncio.sleep(0.02)
    assert supervisor.pid is not None
    await end(supervisor, run)
    causes = [cause.text for cause, _ in stage.notebook.deaths]
    assert causes[0].startswith(reason)
    assert causes[1:] == ["exited with code 1 (an unexpected error)"] * 4
    assert [delay_s for _, delay_s in stage.notebook.deaths] == [0.01, 0.02, 0.04, 0.05, 0.05]


async def test_stop_while_waiting_to_restart_starts_nothing_more(stage: Stage, tmp_path: Path) -> None:
    supervisor = stage.supervise({"exit": 1}, policy=RestartPolicy(first_delay_s=600, max_delay_s=600))
    run = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(WAIT_S):
        while not stage.notebook.deaths:
            await asyncio.sleep(0.02)
    await end(supervisor, run)
    assert len((tmp_path / "script.json.starts").read_text().splitlines()) == 1


async def test_draining_is_not_taken_for_ill_health(stage: Stage) -> None:
    supervisor = stage.supervise({})
    run = asyncio.create_task(supervisor.run())
    await asyncio.wait_for(supervisor.ready.wait(), WAIT_S)
    url = f"http://127.0.0.1:{stage.port}/v1/chat/completions"
    async with (
        httpx.AsyncClient(trust_env=False) as client,
        client.stream("POST", url, json={"stream": True}) as reply,
    ):
        lines = reply.aiter_lines()
        await anext(lines)
        supervisor.stop()  # /health is refused from here on for 2 s: 100 periods
        rest = [line async for line in lines]
    assert "data: [DONE]" in rest
    await asyncio.wait_for(run, WAIT_S)
    assert stage.notebook.deaths == []


async def test_kill_ends_one_that_ignores_sigterm_and_its_children(stage: Stage, tmp_path: Path) -> None:
    supervisor = stage.supervise({"deaf": True, "child": True})
    run = asyncio.create_task(supervisor.run())
    await asyncio.wait_for(supervisor.ready.wait(), WAIT_S)
    starts = [line.split() for line in (tmp_path / "script.json.starts").read_text().splitlines()]
    assert len(starts) == 2
    supervisor.stop()
    await asyncio.sleep(0.2)
    assert not run.done()
    supervisor.kill()
    await asyncio.wait_for(run, WAIT_S)
    wait_gone([int(pid) for _, pid, *_ in starts])
