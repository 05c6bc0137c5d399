"""The operator killed around each of its writes, and each of its calls gone wrong: the end is always the same.

The reference is the same scenario undisturbed. Here the operator's Reconciler runs in this process, so that every write
can be tried; test_killed_process.py does a few with real processes and signals.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.api_server.faulty_api import Call, Fault, Faults, FaultyApi, Killed
from e2e.api_server.played_cluster import SETTINGS, PlayedWorld, connected, new_world
from shoal_api.kube import ApiError, ApiServer
from shoal_api.names import LABEL_REVISION, LABEL_SLOT
from shoal_operator.cluster import Cluster
from shoal_operator.reconcile import Reconciler

AT_ONCE = 4
MOST_ROUNDS = 100
NEW = {"maxNumSeqs": 4}
OTHER = {"maxNumSeqs": 5}
COMPARED = ("pods", "objects", "status", "made_and_deleted")


@dataclass
class End:
    """Compared are pods, the other objects, the status without times, and how often pods were made and deleted."""

    pods: Counter[tuple[str, str, str]]
    objects: set[tuple[str, str]]
    status: dict
    made_and_deleted: tuple[int, int] | None
    peak: int
    calls: list[Call]
    begin: int  # the first write that the scenario is about

    def unlike(self, other: End) -> dict[str, tuple[object, object]]:
        """What differs, here and there."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in COMPARED}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


class Run:
    """One scenario with one kind of fault."""

    def __init__(self, world: PlayedWorld, faults: Faults) -> None:
        self.world = world
        self.api = FaultyApi.over(world.api, faults)
        self.peak = 0
        self.looks = 0
        self.several_ways = False
        self.collected = 0  # pods that went because their owner did
        self.begin = 1
        self._start_operator()

    def _start_operator(self) -> None:
        self.world.reconciler = Reconciler(Cluster(self.api), self.world.fleet, SETTINGS, self._clock)

    def _clock(self) -> float:
        """Two looks are never in the same second, as it would be by chance."""
        return time.time() + self.looks

    async def _look(self) -> bool:
        """The operator once; whether it came to its end."""
        self.looks += 1
        try:
            await self.world.reconciler.reconcile(self.world.key)
        except Killed:
            self._start_operator()
            return False
        except ApiError:
            return False  # the work queue tries again
        return True

    async def round(self) -> bool:
        """Operator and fleet once; whether anybody did anything."""
        before = self.api.writes
        undisturbed = await self._look()
        moved = await self.world.fleet.step()
        self.peak = max(self.peak, len(await self.world.fleet.pods()))
        return bool(moved) or not undisturbed or self.api.writes != before

    async def rounds(self, count: int) -> None:
        """Whoever edits the spec after that many rounds finds the same, disturbed or not: the fleet waits."""
        for _ in range(count):
            while not await self._look():
                pass
            await self.world.fleet.step()

    async def serving(self, **spec: object) -> None:
        """Where a scenario begins that is about what comes then: the way there is `create`'s."""
        await self.world.apply(**spec)
        await self.until_quiet()
        self.begin = self.api.writes + 1

    async def until_quiet(self) -> None:
        """Three rounds in a row with nothing to do."""
        quiet = 0
        for _ in range(MOST_ROUNDS):
            quiet = 0 if await self.round() else quiet + 1
            if quiet == 3:
                return
        last = [f"{call.method} {call.path}" for call in self.api.done[-8:]]
        pytest.fail(f"it never comes to rest; the last writes: {last}")

    async def end(self) -> End:
        world = self.world
        pods = await world.fleet.pods()
        uids = [pod["metadata"]["uid"] for pod in pods]
        assert len(set(uids)) == len(uids)
        slots = Counter(_slot(pod) for pod in pods)
        found = await world.cluster.get("LLMDeployment", world.fleet.namespace, "smollm2")
        done = Counter(call.kind for call in self.api.done if call.write)
        made, deleted = done["POST", "pods"], done["DELETE", "pods"]
        assert found is None or made - deleted - self.collected == len(pods)
        return End(
            slots,
            {(each["kind"], each["metadata"]["name"]) for each in await world.belongings()},
            {} if found is None else timeless(found["status"]),
            None if self.several_ways else (made, deleted),
            self.peak,
            self.api.done,
            self.begin,
        )


def _slot(pod: dict) -> tuple[str, str, str]:
    labels = pod["metadata"]["labels"]
    prefix = pod["metadata"]["name"].rsplit("-", 2)[0]
    return prefix, labels[LABEL_REVISION], labels[LABEL_SLOT]


def timeless(status: dict) -> dict:
    conditions = [
        {k: v for k, v in each.items() if k != "lastTransitionTime"} for each in status["conditions"]
    ]
    # Decisions of an operator that was killed after the write through /scale are not in the history.
    unsure = ("lastScaleTime", "lastMetricTime", "history")
    scaling = {k: v for k, v in status.get("autoscaling", {}).items() if k not in unsure}
    return {**status, "conditions": conditions, "autoscaling": scaling}


async def create(run: Run) -> None:
    await run.world.apply()
    await run.until_quiet()


async def scale_up_and_down(run: Run) -> None:
    await run.serving(replicas=1)
    await run.world.edit(replicas=3)
    await run.until_quiet()
    await run.world.edit(replicas=1)
    await run.until_quiet()


async def rollout(run: Run) -> None:
    await run.serving()
    await run.world.edit(engine=NEW)
    await run.until_quiet()


async def spec_flips_in_mid_rollout(run: Run) -> None:
    # Which of several old replicas goes first depends on the second of their birth, which is the API server's.
    run.several_ways = True
    await run.serving()
    await run.world.edit(engine=NEW)
    await run.rounds(3)
    await run.world.edit(engine=OTHER)
    await run.rounds(3)
    await run.world.edit(engine=NEW)
    await run.until_quiet()


async def rollout_after_prefetch(run: Run) -> None:
    cache = {"type": "HostPath", "path": "/models", "prefetch": True}
    await run.serving(model={"uri": "hf://org/one"}, cache=cache)
    await run.world.edit(model={"uri": "hf://org/two"})
    await run.until_quiet()


async def delete_in_mid_creation(run: Run) -> None:
    await run.world.apply()
    await run.rounds(2)
    await run.world.delete()
    await run.until_quiet()


async def delete_and_create_anew(run: Run) -> None:
    await run.serving()
    run.collected = 2
    await run.world.delete()
    await run.world.apply(replicas=1)
    await run.until_quiet()


async def sleep_and_wake(run: Run) -> None:
    await run.world.apply(replicas=0, autoscaling={"maxReplicas": 3, "minReplicas": 0})
    await run.until_quiet()
    run.world.fleet.held = 2
    await run.rounds(3)
    run.world.fleet.held = 0
    await run.until_quiet()


Scenario = Callable[[Run], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {
    each.__name__: each
    for each in (
        create,
        scale_up_and_down,
        rollout,
        spec_flips_in_mid_rollout,
        rollout_after_prefetch,
        delete_in_mid_creation,
        delete_and_create_anew,
        sleep_and_wake,
    )
}


@pytest.fixture
async def api(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with connected() as server:
        yield server


async def play(api: ApiServer, scenario: Scenario, faults: Faults = lambda _: None) -> End:
    run = Run(await new_world(api), faults)
    await scenario(run)
    return await run.end()


async def play_all(api: ApiServer, scenario: Scenario, all_faults: dict[str, Faults]) -> dict[str, End | str]:
    """What each kind of fault came to; a text is why it came to no end."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(faults: Faults) -> End | str:
        async with slots:
            try:
                return await play(api, scenario, faults)
            except pytest.fail.Exception as failure:
                return str(failure)

    ends = await asyncio.gather(*map(one, all_faults.values()))
    return dict(zip(all_faults, ends, strict=True))


def differences(reference: End, ends: dict[str, End | str]) -> dict[str, object]:
    """By fault, what is not as in the reference."""
    return {
        at: end if isinstance(end, str) else reference.unlike(end)
        for at, end in ends.items()
        if isinstance(end, str) or reference.unlike(end)
    }


def killed_at(write: int, *, committed: bool) -> Faults:
    return lambda call: Fault(Killed(), committed) if call.write == write else None


@pytest.mark.parametrize("committed", [False, True], ids=["before it is sent", "before the reply"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_killed_around_every_write(api: ApiServer, name: str, committed: bool):
    scenario = SCENARIOS[name]
    reference = await play(api, scenario)
    writes = sum(call.write > 0 for call in reference.calls)
    assert writes - reference.begin >= 5
    step = 3 if scenario is spec_flips_in_mid_rollout else 1  # it has many, and they are those of a rollout
    faults = {
        f"write {n}": killed_at(n, committed=committed) for n in range(reference.begin, writes + 1, step)
    }
    ends = await play_all(api, scenario, faults)
    different = differences(reference, ends)
    for at, what in different.items():
        print(at, what)  # pytest would cut it short
    assert not different
    assert {end.peak for end in ends.values() if isinstance(end, End)} <= set(range(reference.peak + 1))


async def life(run: Run) -> None:
    """Everything that the operator does, one after the other."""
    await run.world.apply()
    await run.until_quiet()
    await run.world.edit(engine=NEW, replicas=3)
    await run.until_quiet()
    await run.world.edit(replicas=1, disruptionBudget={"disabled": True}, revisionHistoryLimit=0)
    await run.until_quiet()


CALLS = {
    ("GET", "llmdeployments"),
    ("PUT", "llmdeployments/status"),
    ("GET", "pods"),
    ("POST", "pods"),
    ("PATCH", "pods"),
    ("DELETE", "pods"),
    ("POST", "configmaps"),
    ("DELETE", "configmaps"),
    ("PATCH", "services"),
    ("PATCH", "poddisruptionbudgets"),
    ("DELETE", "poddisruptionbudgets"),
    ("POST", "events"),
}
ERRORS = {
    "409": (ApiError(409, "Conflict", "injected"), False),
    "429": (ApiError(429, "TooManyRequests", "injected", retry_after_s=1.0), False),
    "500": (ApiError(500, "InternalError", "injected"), False),
    "503": (ApiError(503, "ServiceUnavailable", "injected"), False),
    "timeout after commit": (ApiError(0, "Unreachable", "injected"), True),
}


def first_of_kind(calls: list[Call], most: int = 1) -> list[Call]:
    """The first calls of each verb and resource."""
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for call in calls:
        seen[call.kind] += 1
        if seen[call.kind] <= most:
            found.append(call)
    return found


@pytest.mark.parametrize("error", ERRORS)
async def test_each_call_gone_wrong(api: ApiServer, error: str):
    reference = await play(api, life)
    assert {call.kind for call in reference.calls} >= CALLS
    fault = Fault(*ERRORS[error])
    faults = {
        f"{each.kind} (call {each.index})": lambda call, at=each.index: fault if call.index == at else None
        for each in first_of_kind(reference.calls)
    }
    different = differences(reference, await play_all(api, life, faults))
    for at, what in different.items():
        print(at, what)
    assert not different


@pytest.mark.parametrize("share", [0.05, 0.2])
async def test_an_api_server_that_errs_all_over(api: ApiServer, share: float):
    """For a while, at any call, in any way; then it works."""
    reference = await play(api, life)

    def faults(seed: int) -> Faults:
        rng = random.Random(seed)
        bad = {n: Fault(*rng.choice(list(ERRORS.values()))) for n in range(200) if rng.random() < share}
        return lambda call: bad.get(call.index)

    ends = await play_all(api, life, {f"seed {seed}": faults(seed) for seed in range(8)})
    different = differences(reference, ends)
    for at, what in different.items():
        print(at, what)
    assert not different
