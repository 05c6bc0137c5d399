"""The operator as a process, killed by SIGKILL around a write; another one goes on from what the API server knows.

test_crashes.py has every write; here are those of each kind, with kopf, watches, queue, Lease and router links in place.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from e2e.api_server.fault_proxy import FaultProxy, kind_of
from e2e.api_server.played_cluster import NAME, PlayedWorld, connected, new_world
from e2e.api_server.played_router import PlayedRouter
from shoal_api.kube import ApiServer
from shoal_api.names import LABEL_REVISION, LABEL_SLOT, LEASE
from shoal_operator.belongings import DRIFT_CHECK_S
from shoal_operator.cluster import path_of

SETTLED_S = 60.0
QUIET_S = 1.5
RESYNC_S = 5
QUIET_TEST_S = DRIFT_CHECK_S + 2 * RESYNC_S
KILLS = (("POST pods", True), ("PATCH pods", False), ("DELETE pods", True))
STEP_S = 0.1


class OperatorProcess:
    """`python -m shoal_operator` behind the proxy, once killed started anew."""

    def __init__(self, proxy: FaultProxy, world: PlayedWorld, log: Path) -> None:
        self.proxy, self.world, self.log = proxy, world, log
        self.starts = 0
        self.start()

    def start(self) -> None:
        namespace = self.world.fleet.namespace
        command = [sys.executable, "-m", "shoal_operator", f"--namespace={namespace}", "--engine-image=e:1"]
        command += [f"--release-namespace={namespace}", "--probe-port=0", f"--resync-s={RESYNC_S}"]
        self.starts += 1
        with self.log.open("ab") as output:
            environment = {**os.environ, "KUBECONFIG": str(self.proxy.kubeconfig)}
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        self.proxy.kill = self.process.kill

    async def start_anew(self) -> None:
        """A successor waits 15 s for the Lease of a holder that fell silent; here it is freed at once."""
        await asyncio.to_thread(self.process.wait, 10)  # the proxy lives in this loop
        path = path_of("Lease", self.world.fleet.namespace, LEASE)
        await self.world.api.request("DELETE", path)
        self.start()

    async def end(self) -> int:
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, 20)


class Stage:
    """World, router, proxy and operator together."""

    def __init__(self, world: PlayedWorld, proxy: FaultProxy, operator: OperatorProcess) -> None:
        self.world, self.proxy, self.operator = world, proxy, operator

    async def until_settled(self) -> None:
        """As many replicas as wanted, all of the wanted revision, said so in the status; nothing written for a while."""
        loop = asyncio.get_running_loop()
        deadline, quiet_since, before = loop.time() + SETTLED_S, loop.time(), -1
        while loop.time() < deadline:
            if self.proxy.killed.is_set():
                self.proxy.killed.clear()
                await self.operator.start_anew()
            moved = await self.world.fleet.step()
            if moved or len(self.proxy.writes) != before or not await self._as_wanted():
                before, quiet_since = len(self.proxy.writes), loop.time()
            if loop.time() - quiet_since >= QUIET_S:
                return
            await asyncio.sleep(STEP_S)
        pytest.fail(f"not settled:\n{self.operator.log.read_text()[-3000:]}\n{self.proxy.writes[-10:]}")

    async def _as_wanted(self) -> bool:
        found = await self.world.cluster.get("LLMDeployment", self.world.fleet.namespace, NAME)
        if found is None:
            return not await self.world.belongings()
        status, wanted = found.get("status", {}), found["spec"]["replicas"]
        return (
            status.get("observedGeneration") == found["metadata"]["generation"]
            and status["currentRevision"] == status["updateRevision"]
            and status["replicas"] == status["routableReplicas"] == wanted
        )

    async def pods(self) -> list[tuple[str, str]]:
        labels = [pod["metadata"]["labels"] for pod in await self.world.fleet.pods()]
        return sorted((each[LABEL_REVISION], each[LABEL_SLOT]) for each in labels)


async def life(stage: Stage) -> None:
    await stage.world.apply()
    await stage.until_settled()
    await stage.world.edit(engine={"maxNumSeqs": 4})
    await stage.until_settled()
    await stage.world.edit(replicas=1)
    await stage.until_settled()


@pytest.fixture
async def api(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with connected() as server:
        yield server


@pytest.fixture
def stage(api: ApiServer, kubeconfig: Path, tmp_path: Path) -> Callable[[], Awaitable[Stage]]:
    @asynccontextmanager
    async def make() -> AsyncIterator[Stage]:
        world = await new_world(api)
        # A loopback address of this test process alone: the port is fixed.
        host = f"127.{os.getpid() % 200 + 1}.{os.getpid() // 200 % 250}.1"
        async with FaultProxy(kubeconfig, tmp_path) as proxy, PlayedRouter(world.fleet, host):
            operator = OperatorProcess(proxy, world, tmp_path / "operator.log")
            try:
                yield Stage(world, proxy, operator)
            finally:
                operator.process.kill()
                operator.process.wait(10)

    return make


async def test_killed_at_writes_of_every_kind(stage) -> None:
    async with stage() as undisturbed:
        await life(undisturbed)
        reference, writes = await undisturbed.pods(), undisturbed.proxy.writes
        assert undisturbed.operator.starts == 1
        assert await undisturbed.operator.end() == 0
    kinds = [kind_of(write) for write in writes]
    made, deleted = kinds.count("POST pods"), kinds.count("DELETE pods")
    for kind, committed in KILLS:
        async with stage() as killed:
            killed.proxy.at, killed.proxy.committed = kind, committed
            await life(killed)
            assert killed.operator.starts == 2, kind
            assert await killed.pods() == reference, (kind, committed)
            done = [kind_of(write) for write in killed.proxy.writes]
            again = not committed  # it was counted, and never sent
            assert done.count("POST pods") == made + (again and kind == "POST pods")
            assert done.count("DELETE pods") == deleted + (again and kind == "DELETE pods")


async def test_broken_watches_lose_nothing_and_a_quiet_cluster_gets_no_write(stage) -> None:
    async with stage() as broken:
        await broken.world.apply(replicas=1)
        await broken.until_settled()
        for replicas in (2, 3, 1):
            broken.proxy.break_watches()
            await broken.world.edit(replicas=replicas)
            broken.proxy.break_watches()
            await broken.until_settled()
            assert len(await broken.pods()) == replicas
        before = list(broken.proxy.writes)
        await asyncio.sleep(QUIET_TEST_S)  # several resyncs, and drift is looked for
        assert broken.proxy.writes == before
        assert broken.operator.starts == 1
        assert await broken.operator.end() == 0
