"""`shoal operator`: options, kopf as the source of LLMDeployment events, probes. Everything else is controller.py's.

kopf keeps no state on our objects: only on.event is used, which needs no annotations and no finalizers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import kopf
from kopf._core.engines.peering import Identity

from shoal_api.exit_codes import ExitCode
from shoal_api.flags import parse_flags
from shoal_api.kube import ApiError, ApiServer
from shoal_api.names import GROUP, LEASE, PLURAL, VERSION
from shoal_api.operator_options import OperatorOptions
from shoal_operator.controller import Controller, watched_namespaces
from shoal_operator.probe_server import ProbeServer

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the operator until SIGTERM or Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(prog="shoal operator", description=OperatorOptions.__doc__)
    options = parse_flags(parser, OperatorOptions, sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s operator %(levelname)s %(message)s")
    for chatty in ("httpx2", "kopf"):  # a line per request, a line per event
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        return asyncio.run(serve(options))
    except ApiError as error:
        print(f"shoal operator: {error}", file=sys.stderr)
        return ExitCode.USAGE


async def serve(options: OperatorOptions) -> int:
    """Raises ApiError when there is no way to an API server."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{os.getpid()}"
    async with ApiServer.from_env() as api:
        controller = Controller(api, options, identity, version("shoal"))
        namespaces = watched_namespaces(options, api.namespace)
        parts = [
            asyncio.create_task(controller.run()),
            asyncio.create_task(watch(controller, namespaces, stop)),
            asyncio.create_task(ProbeServer(controller, options.probe_port).run()),
        ]
        stopping = asyncio.create_task(stop.wait())
        # A part that ends by itself takes the process with it: a new one is better than half an operator.
        await asyncio.wait([*parts, stopping], return_when=asyncio.FIRST_COMPLETED)
        asked = stop.is_set()
        stop.set()
        for part in parts:
            part.cancel()
        results = await asyncio.gather(*parts, return_exceptions=True)
        await controller.stop()
    for result in results:
        if isinstance(result, Exception):
            log.error("a part of the operator ended", exc_info=result)
    return ExitCode.STOPPED if asked else ExitCode.UNEXPECTED


async def watch(controller: Controller, namespaces: tuple[str | None, ...], stop: asyncio.Event) -> None:
    """Tell the controller of every LLMDeployment event, until `stop`."""
    registry = kopf.OperatorRegistry()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def look(*, type: str, namespace: str | None, name: str, **_: Any) -> None:  # noqa: A002 - kopf's name
        controller.look_at(f"{namespace}/{name}", exists=type != "DELETED")

    @kopf.on.login(registry=registry)
    async def login(**fields: Any) -> kopf.ConnectionInfo | None:
        # The same order as kube.py's. kopf tries every way that it finds if it is not told.
        if os.environ.get("KUBECONFIG"):
            return kopf.login_with_kubeconfig(**fields)
        return kopf.login_with_service_account(**fields) or kopf.login_with_kubeconfig(**fields)

    names = [namespace for namespace in namespaces if namespace is not None]
    with contextlib.suppress(asyncio.CancelledError):
        await kopf.operator(
            registry=registry,
            settings=kopf_settings(),
            standalone=True,  # the Lease is ours: kopf's peering is blind for a minute
            identity=Identity(LEASE),  # kopf would ask who the user is, and a container's uid has no name
            clusterwide=not names,
            namespaces=names,
            stop_flag=stop,
        )
        stop.set()  # kopf takes the signal handlers for itself, and returns without an error only when it was told to


def kopf_settings() -> kopf.OperatorSettings:
    """kopf waits for ever by default: a watch that fell silent would never be noticed."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    # By default an API server that errs for a minute ends the process; after an hour a new one may have more luck.
    settings.networking.error_backoffs = (1, 1, 2, 3, 5, *[10] * 360)
    return settings


if __name__ == "__main__":
    sys.exit(main())
