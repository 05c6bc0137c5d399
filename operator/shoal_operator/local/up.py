"""`shoal up`: read manifests, look at this machine, plan and run. The edge, where everything is put together.

Exit codes: 0 drained cleanly, 1 cannot run or did not drain in time, 2 wrong usage, 128 + N killed at once by
a second signal N.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO, cast

import httpx
from rich.console import Console

from shoal_api.names import PORT_ROUTER_HTTP
from shoal_api.spec import LLMDeployment
from shoal_operator.local.errors import CannotRun
from shoal_operator.local.lifeline import Lifeline
from shoal_operator.local.machine import available_cpus, visible_gpus
from shoal_operator.local.manifests import read_deployments
from shoal_operator.local.models import ModelPlaces, find_model, hf_cache_dir
from shoal_operator.local.outlet import Outlet
from shoal_operator.local.plan import LocalPlan, Machine, Placed, Programs, make_plan, ports_needed
from shoal_operator.local.ports import LOOPBACK, free_ports, require_free
from shoal_operator.local.progress import Terminal
from shoal_operator.local.session import Session, SessionSettings


def main(
    argv: Sequence[str] | None = None,
    programs: Programs | None = None,
    settings: SessionSettings | None = None,
) -> int:
    """Run the command and return its exit code. `programs` and `settings` are for callers with engines of their own."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.ready_file is not None and not options.ready_file.absolute().parent.is_dir():
        parser.error(f"--ready-file: there is no directory {options.ready_file.parent}")
    console = Console(file=cast(TextIO, Outlet(sys.stdout)), highlight=False)
    try:
        manifests = read_deployments(options.file)
        for note in manifests.notes:
            console.print(f"note: {note}", markup=False, soft_wrap=True)
        if not manifests.deployments:
            return 0
        plan = _plan(manifests.deployments, options, programs or Programs(), os.environ)
    except CannotRun as error:
        print(f"shoal up: {error}", file=sys.stderr)
        return 1
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    settings = replace(settings or SessionSettings(), ready_file=options.ready_file)
    return asyncio.run(_run(plan, console, settings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal up",
        description="Run the LLMDeployments of manifests as local processes: their engines, and one router for all.",
    )
    add = parser.add_argument
    add(
        "-f", "--file", nargs="+", action="extend", required=True, metavar="FILE",
        help="manifest, directory of manifests, or - for standard input",
    )  # fmt: skip
    add("--host", default=LOOPBACK, help="address that the router listens on (default: %(default)s)")
    add("--port", type=int, default=PORT_ROUTER_HTTP, help="port of the router (default: %(default)s)")
    add(
        "--models-dir", type=Path, default=Path(".cache/models"), metavar="DIR",
        help="stands in for /models of file:///models/... (default: %(default)s)",
    )  # fmt: skip
    add(
        "--ready-file", type=Path, metavar="FILE",
        help="when all is ready, write addresses and process ids there as JSON",
    )  # fmt: skip
    return parser


def _plan(
    deployments: Sequence[LLMDeployment],
    options: argparse.Namespace,
    programs: Programs,
    environ: Mapping[str, str],
) -> LocalPlan:
    """What will run, with everything found and free that it needs. Raises CannotRun."""
    require_free(options.host, options.port)
    places = ModelPlaces(options.models_dir, hf_cache_dir(environ))
    machine = Machine(
        cpus=available_cpus(),
        gpus=visible_gpus(environ),
        free_ports=free_ports(ports_needed(deployments)),
        router_host=options.host,
        router_port=options.port,
    )
    return make_plan([_place(deployment, places) for deployment in deployments], machine, programs)


def _place(deployment: LLMDeployment, places: ModelPlaces) -> Placed:
    model = deployment.spec.model
    adapters = {each.name: str(find_model(each.uri, None, places)) for each in deployment.spec.adapters}
    return Placed(deployment, str(find_model(model.uri, model.revision, places)), adapters)


async def _run(plan: LocalPlan, console: Console, settings: SessionSettings) -> int:
    names = [plan.router.command.name, *(replica.command.name for replica in plan.replicas)]
    # No proxy from the environment: everything asked is on this machine.
    async with httpx.AsyncClient(trust_env=False) as client:
        with Lifeline() as lifeline, Terminal(console, names) as terminal:
            return await Session(plan, terminal, lifeline, client, settings).run()


if __name__ == "__main__":
    sys.exit(main())
