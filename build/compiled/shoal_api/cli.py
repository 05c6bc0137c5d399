"""The `shoal` command: a table of programs, each imported only when it is run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from shoal_api.problems import closest


@dataclass(frozen=True, slots=True)
class Command:
    """`target` is MODULE:FUNCTION and takes the arguments behind the command; `extra` brings what it imports."""

    target: str
    extra: str
    help: str


COMMANDS = {
    "up": Command("shoal_operator.local.up:main", "all", "Run the models of a manifest on this machine"),
    "demo": Command(
        "shoal_operator.local.demo:main", "all", "From a manifest to an answer, with a small model"
    ),
    "serve": Command("shoal_engine.__main__:main", "engine", "Serve one model over an OpenAI-compatible API"),
    "router": Command(
        "shoal_router.__main__:main", "router", "Spread requests over engines by cached prefix"
    ),
    "bench": Command("shoal_engine.bench.command:main", "engine", "Measure a model, or any OpenAI server"),
    "build": Command("shoal_engine.build_command:main", "engine", "Compile a model's kernels ahead of time"),
    "fetch": Command("shoal_engine.sources.fetch:main", "engine", "Bring a model into a cache directory"),
    "operator": Command(
        "shoal_operator.__main__:main", "operator", "Turn LLMDeployments into pods, on a cluster"
    ),
    "validate": Command("shoal_api.validate:main", "", "Check manifests as a cluster would"),
    "version": Command("shoal_api.cli:print_version", "", "Print the version"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of the table and return its exit status; 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if name in ("-V", "--version"):
        return print_version([])
    command = COMMANDS.get(name)
    if command is None:
        meant = closest(name, COMMANDS)
        hint = f"did you mean `shoal {meant}`?" if meant else "`shoal --help` lists all commands"
        print(f"shoal: there is no command {name}; {hint}", file=sys.stderr)
        return 2
    return _run(name, command, arguments[1:])


def usage() -> str:
    """What `shoal --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    head = (
        "usage: shoal COMMAND [options]\n\nServe large language models on Kubernetes, or on this machine.\n"
    )
    return "\n".join([head, "commands:", *lines, "", "`shoal COMMAND --help` explains a command."])


def print_version(argv: Sequence[str]) -> int:
    print(f"shoal {version('shoal')}")
    return 0


def _run(name: str, command: Command, arguments: Sequence[str]) -> int:
    module, _, function = command.target.partition(":")
    try:
        program = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if not command.extra or (error.name or "").startswith("shoal_"):
            raise
        print(
            f"shoal {name}: the package {error.name} is not installed; run: pip install 'shoal[{command.extra}]'",
            file=sys.stderr,
        )
        return 1
    status: int = program(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
