"""`shoal serve MODEL [options]`: read the options and the environment, then serve. Also `python -m
shoal_engine`.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import resource
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import PurePath
from typing import TYPE_CHECKING

from rich.console import Console

from shoal_api.exit_codes import ExitCode
from shoal_api.flags import parse_flags
from shoal_api.names import PORT_ENGINE_GRPC
from shoal_api.options import ModelOptions, ServeOptions
from shoal_api.spans import SpanSender, TracingUnavailable

if TYPE_CHECKING:
    from shoal_engine.server.serving import Settings


def main(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Serve until a signal or the engine's end; returns the exit code. A mistake in `argv` ends the process
    with 2.
    """
    parser = argparse.ArgumentParser(
        prog="shoal serve", description="Serve one model over HTTP, OpenAI-compatible."
    )
    options = parse_flags(parser, ServeOptions, argv)
    # Imported late, so that --help is quick and a mistaken option is told at once.
    from shoal_engine.logs import set_up_logging
    from shoal_engine.server.http_server import listen
    from shoal_engine.server.serving import ApiServer

    set_up_logging()
    raise_file_limit()
    try:
        listener = listen(options.host, options.port)
    except OSError as error:
        print(
            f"shoal serve: cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr
        )
        return ExitCode.ADDRESS
    try:
        grpc_port = choose_grpc_port(options, listen)
    except OSError as error:
        print(
            f"shoal serve: cannot listen on {options.host}:{options.grpc_port} for gRPC: {error.strerror}; "
            "choose another --grpc-port, or 0 for none",
            file=sys.stderr,
        )
        return ExitCode.ADDRESS
    try:
        sender = SpanSender.of(options, environ, "shoal-engine")
    except TracingUnavailable as error:
        parser.error(str(error))
    settings = replace(settings_of(options, environ, grpc_port), sender=sender)

    async def serve() -> int:
        return await ApiServer(settings, listener, Console(stderr=True)).run()

    try:
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            return int(runner.run(serve()))
    finally:
        if sender is not None:
            sender.close()


def choose_grpc_port(options: ServeOptions, listen: Callable[[str, int], socket.socket]) -> int:
    """The port of the pushed state, 0 for none. Raises OSError when the one that was asked for is taken."""
    if options.grpc_port == 0:
        return 0
    try:
        found = listen(options.host, options.grpc_port or PORT_ENGINE_GRPC)
    except OSError:
        if options.grpc_port is not None:
            raise
        # Another engine of this machine has it. Routers read in the metrics which one it is.
        found = listen(options.host, 0)
    with found:
        port: int = found.getsockname()[1]
        return port


def settings_of(options: ServeOptions, environ: Mapping[str, str], grpc_port: int = 0) -> Settings:
    """What the server needs, from options and environment."""
    from shoal_engine.model_text import load_model_text
    from shoal_engine.server.serving import Settings

    model = ModelOptions.model_validate(options.model_dump(include=set(ModelOptions.model_fields)))
    key = environ.get("SHOAL_API_KEY", "")
    return Settings(
        model_name=options.served_model_name or default_name(options.model),
        model_root=options.model,
        version=version("shoal"),
        engine_command=engine_command(model),
        load_text=functools.partial(load_model_text, model),
        api_keys=[*options.api_key, key] if key else options.api_key,
        seed=options.seed,
        drain_timeout_s=options.drain_timeout_s,
        grpc_port=grpc_port,
        any_grpc_port=options.grpc_port is None,
    )


def engine_command(options: ModelOptions) -> list[str]:
    """The engine process's command line; its keys and addresses stay here, out of `ps` and out of its reach."""
    return [
        sys.executable,
        "-P",
        "-m",
        "shoal_engine.engine_process",
        f"--options={options.model_dump_json()}",
    ]


def default_name(model: str) -> str:
    """The last part of a path or URI, without .gguf."""
    return PurePath(model.rstrip("/")).name.removesuffix(".gguf") or model


def raise_file_limit() -> None:
    """Each client is a file; the soft limit of 1024 is for programs that still use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
