"""`shoal bench offline|serve ...`: finds the benchmark. Measures nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

KINDS = {
    "offline": "tokens per second of a model in this process",
    "serve": "latencies and tokens per second of any OpenAI-compatible server",
}


def main(argv: Sequence[str]) -> int:
    """Run one benchmark and return its exit status. A mistake in `argv` ends the process with 2."""
    parser = argparse.ArgumentParser(
        prog="shoal bench",
        description="Measure a model or a server.",
        epilog="\n".join(f"{name:8} {sentence}" for name, sentence in KINDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS, help="`shoal bench KIND --help` explains it")
    kind = parser.parse_args(argv[:1]).kind
    if kind == "offline":
        from shoal_engine.bench import offline

        return offline.main(argv[1:])
    from shoal_engine.bench import serve

    return serve.main(argv[1:])
