"""`shoal router`: options, event loop, signals. Everything else is app.py's."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from shoal_api.exit_codes import ExitCode
from shoal_api.flags import parse_flags
from shoal_api.kube import ApiError, ApiServer
from shoal_api.options import RouterOptions
from shoal_api.spans import SpanSender, TracingUnavailable
from shoal_router.app import Router
from shoal_router.discovery import Discovery, StaticDiscovery
from shoal_router.key_file import KeyFileError
from shoal_router.kubernetes_discovery import KubernetesDiscovery
from shoal_router.settings import RouterSettings
from shoal_router.state_server import StateServer
from shoal_router.worker_metrics import WorkerMetrics
from shoal_router.workers import Workers, hold_port

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a router until SIGTERM or Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(prog="shoal router", description=RouterOptions.__doc__)
    options = parse_flags(parser, RouterOptions, sys.argv[1:] if argv is None else argv)
    try:
        settings = RouterSettings.from_options(options)
        api = None if settings.addresses else ApiServer.from_env()
    except ApiError as error:
        parser.error(
            f"no Kubernetes API server to find replicas: {error}; or give --endpoint http://HOST:PORT"
        )
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s router %(levelname)s %(message)s")

    def run(settings: RouterSettings, workers: WorkerMetrics | None = None) -> int:
        try:
            sender = SpanSender.of(options, os.environ, "shoal-router")
        except TracingUnavailable as error:
            parser.error(str(error))
        try:
            with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
                return runner.run(serve(settings, make_discovery(settings, api), sender, workers))
        finally:
            if sender is not None:
                sender.close()

    if settings.processes == 1:
        return run(settings)
    if api is not None:
        # The operator reads one state per router pod; several processes would each tell a part of it.
        parser.error("--processes is for --endpoint only; in a cluster run more router pods instead")
    return run_workers(settings, run)


def run_workers(settings: RouterSettings, run: Callable[[RouterSettings, WorkerMetrics], int]) -> int:
    """Run `settings.processes` routers behind one port until a signal; returns the exit code."""
    try:
        held = hold_port(settings.host, settings.port)
    except OSError as error:
        return _no_address(settings, error)
    settings = replace(settings, port=held.getsockname()[1])
    with held, tempfile.TemporaryDirectory(prefix="shoal-router-") as directory:
        return Workers(
            settings.processes, lambda number: run(settings, WorkerMetrics(Path(directory), number))
        ).run()


def make_discovery(settings: RouterSettings, api: ApiServer | None) -> Discovery:
    """The replicas that were given, or those that the cluster has."""
    if api is None:
        return StaticDiscovery(settings.addresses)
    return KubernetesDiscovery(api, settings.namespaces, settings.selector)


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one; None is asyncio's own, at half the speed."""
    try:
        import uvloop
    except ImportError:
        log.warning("uvloop is not installed; the router runs at half its speed")
        return None
    return uvloop.new_event_loop


def _no_address(settings: RouterSettings, error: OSError) -> int:
    log.error("cannot listen on %s:%d: %s; choose another --port", settings.host, settings.port, error)
    return ExitCode.ADDRESS


async def serve(
    settings: RouterSettings,
    discovery: Discovery,
    sender: SpanSender | None = None,
    workers: WorkerMetrics | None = None,
) -> int:
    """Serve until a signal; a second one ends the drain."""
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    router = Router(settings, discovery, rng=random.Random(), sender=sender, workers=workers)
    loop.add_signal_handler(signal.SIGUSR1, lambda: router.set_access_log(not router.access_log))
    try:
        await router.start()
    except KeyFileError as error:
        log.error("no requests are taken without keys: %s", error)
        return ExitCode.USAGE
    except OSError as error:
        return _no_address(settings, error)
    teller = StateServer(router, os.environ.get("POD_NAME") or socket.gethostname(), loop.time)
    if discovery.synced is not None:  # without an operator there is nobody to tell
        try:
            await teller.start(settings.host, settings.grpc_port)
        except OSError as error:
            log.error("cannot listen for the operator: %s; choose another --grpc-port", error)
            await router.stop(0.0)
            return ExitCode.ADDRESS
    where = f"{len(settings.addresses)} replicas" if settings.addresses else "the cluster's replicas"
    log.info("listening on http://%s:%d for %s", settings.host, router.port, where)
    await stop.wait()
    log.info("draining for at most %g s", settings.drain_delay_s + settings.drain_timeout_s)
    draining = loop.create_task(router.stop(settings.drain_timeout_s))
    hurrying = loop.create_task(hurry.wait())
    await asyncio.wait((draining, hurrying), return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    if not draining.done():
        draining.cancel()
    await teller.stop()
    return ExitCode.STOPPED


if __name__ == "__main__":
    sys.exit(main())
