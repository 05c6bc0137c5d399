"""`shoal router` without --endpoint: a process that finds its cluster through a kubeconfig."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import grpc

from shoal_api import router_state_pb2 as pb
from shoal_api import router_state_pb2_grpc as rpc
from tests.router.cluster import DEPLOYMENTS, PODS, Cluster, llm, pod
from tests.router.scripted import Client, Replica, post
from tests.router.test_process import ENVIRONMENT, free_port, wait_until_ready


def kubeconfig(at: Path, port: int) -> Path:
    named = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "default"}}],
    }
    path = at / "kubeconfig"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "x", **named}))
    return path


def test_router_process_routes_and_tells_its_state(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster, replica = Cluster(), Replica()
        await replica.start()
        cluster.put(DEPLOYMENTS, llm("m"))
        cluster.put(PODS, pod("m-1-0", port=replica.port))
        server = await asyncio.start_server(cluster.serve, "127.0.0.1", 0)
        config = kubeconfig(tmp_path, server.sockets[0].getsockname()[1])
        environment = {
            **ENVIRONMENT,
            "KUBECONFIG": str(config),
            "POD_NAME": "router-0",
        }
        port, grpc_port = free_port(), free_port()
        command = [sys.executable, "-m", "shoal_router", "--port", str(port), "--grpc-port", str(grpc_port)]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        try:
            await wait_until_ready(port, process)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel, asyncio.timeout(10):
                async for state in rpc.RouterStateStub(channel).Observe(pb.ObserveRequest()):
                    if any(each.standing == pb.STANDING_ROUTABLE for each in state.endpoints):
                        break
            assert (state.router, state.synced, state.models[0].deployment) == ("router-0", True, "m")
            client = await Client.connect(port)
            assert (await client.ask(post())).headers["x-shoal-replica"] == "m-1-0"
            client.close()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 10) == 0
        finally:
            process.kill()
            _, errors = process.communicate()
            server.close()
            await replica.kill()
        assert b"Traceback" not in errors

    asyncio.run(scenario())
