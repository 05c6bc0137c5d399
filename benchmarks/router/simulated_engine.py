"""Simulated engines for router benchmarks, one per port, all in one process: no model, four bytes are a token.

    python benchmarks/router/simulated_engine.py --ports 9101,9102 [--grpc-ports 9201,9202]

They are no GPU: the order of routers transfers, milliseconds do not.
"""

from __future__ import annotations

import argparse
import asyncio
from functools import partial

import uvloop
from simulated_http import Connection
from simulated_scheduler import Engine, Speed
from simulated_state import serve_state


async def serve(ports: list[int], grpc_ports: list[int], speed: Speed) -> None:
    loop = asyncio.get_running_loop()
    for i, port in enumerate(ports):
        engine = Engine(speed, grpc_ports[i] if grpc_ports else 0)
        await loop.create_server(partial(Connection, engine), "127.0.0.1", port, backlog=4096)
        if engine.grpc_port:
            await serve_state(engine)
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports", required=True, help="comma-separated, one engine each")
    parser.add_argument("--grpc-ports", default="", help="as many, on which engines push their state")
    parser.add_argument("--instant", action="store_true", help="answer at once")
    parser.add_argument("--pace-ms", type=float, default=0.0, help="between two chunks of an instant engine")
    parser.add_argument("--cache-blocks", type=int, default=2048)
    flags = parser.parse_args()
    speed = Speed(flags.instant, flags.pace_ms / 1000, cache_blocks=flags.cache_blocks)
    grpc_ports = [int(port) for port in flags.grpc_ports.split(",") if port]
    uvloop.run(serve([int(port) for port in flags.ports.split(",")], grpc_ports, speed))


if __name__ == "__main__":
    main()
