"""Compile the router's hot path to machine code, in place: mypyc makes a C extension of typed Python.

    python scripts/compile_router.py DIRECTORY

DIRECTORY holds the packages shoal_api and shoal_router, as an image or `make compiled` lays them out: never the sources
themselves, where an extension would hide every later change. The .py files stay beside their extensions; without these
the router behaves the same and takes about twice the CPU. Needs a C compiler, mypy, setuptools and what the router
imports, whose types decide what is compiled to what.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mypyc.build import mypycify
from setuptools import Distribution

# The modules that a request passes. Not: app and health, which start and watch the process with libraries that do not
# always give what their types say, and an extension checks that; fields and model_listing, as msgspec decodes by
# annotations, and mypyc does not keep them; metrics_text, where an int given for a float would be printed as one.
MODULES = [
    "shoal_api/request_prefix",
    "shoal_router/admission",
    "shoal_router/attempt",
    "shoal_router/believed_cache",
    "shoal_router/canonical",
    "shoal_router/chain_header",
    "shoal_router/chunks",
    "shoal_router/connection",
    "shoal_router/decisions",
    "shoal_router/demand",
    "shoal_router/digits",
    "shoal_router/dispatch",
    "shoal_router/drain_rate",
    "shoal_router/endpoints",
    "shoal_router/event_reader",
    "shoal_router/exchange",
    "shoal_router/failure",
    "shoal_router/fair_queue",
    "shoal_router/gate",
    "shoal_router/http1",
    "shoal_router/interrupted",
    "shoal_router/keys",
    "shoal_router/listener",
    "shoal_router/metrics",
    "shoal_router/models",
    "shoal_router/nesting",
    "shoal_router/placement",
    "shoal_router/placer",
    "shoal_router/policy",
    "shoal_router/pool",
    "shoal_router/prefix_index",
    "shoal_router/prices",
    "shoal_router/prompt",
    "shoal_router/proxied",
    "shoal_router/proxy",
    "shoal_router/quarantine",
    "shoal_router/queue_bounds",
    "shoal_router/rate_limits",
    "shoal_router/recent_prefixes",
    "shoal_router/refusal",
    "shoal_router/relay",
    "shoal_router/repeated_head",
    "shoal_router/replies",
    "shoal_router/reply_head",
    "shoal_router/reported_cache",
    "shoal_router/request",
    "shoal_router/resumable_relay",
    "shoal_router/resumable_stream",
    "shoal_router/resume",
    "shoal_router/retry",
    "shoal_router/routes",
    "shoal_router/shortlist",
    "shoal_router/standing",
    "shoal_router/timeouts",
    "shoal_router/unchunk",
    "shoal_router/upstream",
    "shoal_router/usage",
    "shoal_router/waiting_line",
]


def compile_in(directory: Path) -> None:
    """Leave an extension beside each of MODULES. Raises SystemExit when one does not compile."""
    os.chdir(directory)
    os.environ["MYPYPATH"] = str(directory)
    sources = [f"{module}.py" for module in MODULES]
    options = [
        "--config-file=",  # not that of a folder above
        "--follow-imports=silent",  # what is wrong elsewhere, as in generated files, stops nobody
        "--ignore-missing-imports",
        "--explicit-package-bases",
        "--namespace-packages",
    ]
    with TemporaryDirectory(prefix="shoal-mypyc-") as scratch:  # for what nobody needs afterwards
        extensions = mypycify(
            [f"--cache-dir={scratch}/mypy", *options, *sources],
            opt_level="3",
            debug_level="0",
            group_name="shoal_router",
            target_dir=f"{scratch}/c",
        )
        build = Distribution({"name": "shoal-router", "ext_modules": extensions}).get_command_obj("build_ext")
        build.inplace = True
        build.build_temp = build.build_lib = f"{scratch}/built"
        build.parallel = os.cpu_count()
        build.ensure_finalized()
        build.run()


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "shoal_router").is_dir():
        sys.exit(__doc__)
    compile_in(Path(sys.argv[1]).resolve())
