"""The port of a gRPC server. What is served there is the programs'."""

from __future__ import annotations

import grpc


def bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Have the server listen there once it is started; returns the port, of which 0 takes a free one.

    Raises OSError when the address cannot be had.
    """
    try:
        return int(server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
    except RuntimeError as error:
        raise OSError(str(error)) from error
