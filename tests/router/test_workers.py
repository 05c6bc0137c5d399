"""`shoal router --processes`: several workers behind one port, supervised, with one /metrics."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal_api.exit_codes import ExitCode
from shoal_router.worker_metrics import WorkerMetrics, merge
from tests.router.scripted import LAST_CHUNK, PING, Client, Replica, chat, chunk, get, post, stream_until
from tests.router.test_process import ENVIRONMENT, command, free_port, wait_until_ready


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def told(port: int, sample_name: str, **labels: str) -> dict[str, float]:
    """The values of a sample by worker, as whichever worker was asked tells them."""
    client = await Client.connect(port)
    text = (await client.ask(get("/metrics"))).raw_body.decode()
    client.close()
    return {
        sample.labels["worker"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == sample_name and labels.items() <= sample.labels.items()
    }


async def until_told(port: int, total: float, sample_name: str, **labels: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                values = await told(port, sample_name, **labels)
            except (OSError, asyncio.IncompleteReadError):
                values = {}
            if sum(values.values()) == total:
                return
            await asyncio.sleep(0.05)


async def scenario_of_two_workers() -> None:
    release = asyncio.Event()
    replica, port = Replica(script=stream_until(release)), free_port()
    await replica.start()
    flags = (
        "--endpoint",
        replica.url,
        "--port",
        str(port),
        "--processes",
        "2",
        "--health-interval-s",
        "0.05",
    )
    router = subprocess.Popen(command(*flags), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        await until_told(port, 2, "shoal_router_replica_state", state="healthy")
        clients = [await Client.connect(port) for _ in range(16)]
        for client in clients:
            client.writer.write(post(body=chat("hi", stream=True)))
        for client in clients:
            await client.head()
        # One dies: its streams are lost, the other's are not, and there are two again.
        victim, other = children(router.pid)
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(20):
            while len(now := children(router.pid)) < 2 or victim in now:
                await asyncio.sleep(0.05)
        assert other in now
        release.set()
        ends = [client.reader.readuntil(LAST_CHUNK) for client in clients]
        ended = await asyncio.gather(*ends, return_exceptions=True)
        whole = [each for each in ended if each == PING + chunk(b"data: [DONE]\n\n") + LAST_CHUNK]
        assert 0 < len(whole) < len(clients), "the kernel deals connections out to both"
        await until_told(port, 2, "shoal_router_replica_state", state="healthy")
        for client in [await Client.connect(port) for _ in range(16)]:
            client.writer.write(post(body=chat("hi", stream=True)))
            assert (await client.head()).status == 200
            await client.reader.readuntil(LAST_CHUNK)
        await until_told(port, len(whole) + 16, "shoal_router_requests_total")
        router.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(router.wait, 10) == 0
    finally:
        router.kill()
        router.wait()
        await replica.kill()


def test_a_worker_that_dies_takes_only_its_own_streams_and_is_started_again() -> None:
    asyncio.run(scenario_of_two_workers())


def test_a_taken_port_is_told_once_with_its_exit_code() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = (
            "--endpoint",
            "http://127.0.0.1:1",
            "--processes",
            "2",
            "--port",
            str(taken.getsockname()[1]),
        )
        done = subprocess.run(command(*flags), env=ENVIRONMENT, capture_output=True, timeout=20, check=False)
    assert done.returncode == ExitCode.ADDRESS
    assert done.stderr.count(b"choose another --port") == 1
    assert b"Traceback" not in done.stderr


def test_what_no_worker_can_run_with_ends_the_router_with_its_exit_code(tmp_path: Path) -> None:
    flags = ("--endpoint", "http://127.0.0.1:1", "--processes", "2", "--port", "0")
    flags += ("--api-keys-file", str(tmp_path / "missing.yaml"))
    done = subprocess.run(command(*flags), env=ENVIRONMENT, capture_output=True, timeout=20, check=False)
    assert done.returncode == ExitCode.USAGE
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_workers_do_not_outlive_a_parent_that_is_killed() -> None:
    async def scenario() -> None:
        replica, port = Replica(), free_port()
        await replica.start()
        flags = ("--endpoint", replica.url, "--port", str(port), "--processes", "2")
        router = subprocess.Popen(command(*flags), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        try:
            await wait_until_ready(port, router)
            workers = children(router.pid)
        finally:
            router.kill()
            router.wait()
        async with asyncio.timeout(20):
            while any(Path(f"/proc/{pid}/exe").exists() for pid in workers):
                await asyncio.sleep(0.05)
        await replica.kill()

    asyncio.run(scenario())


def test_in_a_cluster_several_processes_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        "contexts: [{name: c, context: {cluster: c, user: u}}]\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]\n"
    )
    environment = {**ENVIRONMENT, "KUBECONFIG": str(config)}
    done = subprocess.run(
        command("--processes", "2"), env=environment, capture_output=True, timeout=20, check=False
    )
    assert done.returncode == ExitCode.USAGE
    assert b"run more router pods" in done.stderr


def test_a_text_that_vanishes_between_listing_and_reading_leaves_the_others(tmp_path: Path) -> None:
    text = b"# HELP a A.\na %d\n"
    WorkerMetrics(tmp_path, 1).put(text % 1)
    (tmp_path / "2.prom").symlink_to(tmp_path / "gone")  # listed, and not there when it is opened
    merged = WorkerMetrics(tmp_path, 0).merged(text % 3)
    assert merged == b'# HELP a A.\na{worker="0"} 3\na{worker="1"} 1\n'


def test_merged_metrics_have_each_family_once_and_every_sample_under_its_worker() -> None:
    text = '# HELP a_total A.\n# TYPE a_total counter\na_total{m="x"} %d\n# HELP b B.\n# TYPE b gauge\nb %d\n'
    merged = merge({1: (text % (1, 2)).encode(), 0: (text % (3, 4)).encode()}).decode()
    families = list(text_string_to_metric_families(merged))
    assert [(family.name, family.documentation) for family in families] == [("a", "A."), ("b", "B.")]
    assert [[(sample.labels, sample.value) for sample in family.samples] for family in families] == [
        [({"worker": "0", "m": "x"}, 3.0), ({"worker": "1", "m": "x"}, 1.0)],
        [({"worker": "0"}, 4.0), ({"worker": "1"}, 2.0)],
    ]
