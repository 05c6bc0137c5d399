"""Whatever the OpenAPI schema allows, and what it forbids, through a real router to a real engine: any 5xx, any hang?

Starts `shoal serve` with a tiny model on the CPU and `shoal router` in front of it, lets schemathesis make cases from the
engine's own schema (two of three allowed, one of three not), and prints statuses, 5xx and hangs; exit code 1 if there
is one of these.

    python benchmarks/router/schemathesis_cases.py --cases 10000 --seed 1
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]

HANG_S = 20.0
OPERATIONS = (  # and the share of the cases that each gets
    ("POST", "/v1/chat/completions", 0.45),
    ("POST", "/v1/completions", 0.35),
    ("POST", "/tokenize", 0.1),
    ("POST", "/detokenize", 0.05),
    ("GET", "/v1/models/{model}", 0.05),
)
MODEL = "tiny"
MOST_TOKENS = 5  # per answer: what is tested is the request, not patience


@contextmanager
def fleet(folder: Path) -> Iterator[tuple[str, str]]:
    """URLs of a router and of the engine behind it, both ready."""
    write_tiny_model(folder)
    engine_port, router_port = free_port(), free_port()
    engine, router = f"http://127.0.0.1:{engine_port}", f"http://127.0.0.1:{router_port}"
    serve = [str(folder), "--load-format=dummy", f"--port={engine_port}", "--grpc-port=0", "--num-threads=1"]
    serve.append(f"--served-model-name={MODEL}")
    route = ["--endpoint", engine, f"--port={router_port}"]
    paths = ":".join(str(ROOT / name) for name in ("crds", "router", "engine"))
    environment = {**os.environ, "PYTHONPATH": paths}
    with (folder / "log").open("wb") as log:
        processes = [
            subprocess.Popen([sys.executable, "-m", module, *flags], stderr=log, env=environment)
            for module, flags in (("shoal_engine", serve), ("shoal_router", route))
        ]
        try:
            wait_until_ready(router, processes)
            yield router, engine
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def wait_until_ready(url: str, processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            raise SystemExit("a server ended before it was ready")
        try:
            if httpx.get(url + "/ready").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise SystemExit("the servers are not ready after two minutes")


class Cases:
    """Sends cases, counts what comes back."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.statuses: Counter[int] = Counter()
        self.errors: list[str] = []
        self.hangs: list[str] = []
        self.broken: list[str] = []
        self.slowest_s = 0.0

    def send(self, case: Any) -> None:
        if isinstance(case.body, dict):
            case.body["max_tokens"] = MOST_TOKENS
            if sum(self.statuses.values()) % 4:  # else most of them would name a model that is not there
                case.body["model"] = MODEL
            case.body.pop("max_completion_tokens", None)
        began_s = time.perf_counter()
        try:
            response = case.call(base_url=self.url, timeout=HANG_S)
        except Exception as error:
            took_s = time.perf_counter() - began_s
            (self.hangs if took_s >= HANG_S else self.broken).append(f"{case.as_curl_command()}: {error!r}")
            return
        self.slowest_s = max(self.slowest_s, time.perf_counter() - began_s)
        self.statuses[response.status_code] += 1
        if response.status_code >= 500:
            self.errors.append(f"{response.status_code} {response.content[:300]!r}: {case.as_curl_command()}")


def run(url: str, document: Any, count: int, number: int, mode: GenerationMode) -> Cases:
    """Send `count` cases, spread over the operations."""
    cases = Cases(url)
    schema = schemathesis.openapi.from_dict(document)
    for method, path, share in OPERATIONS:
        wanted = max(1, round(count * share))
        quiet = settings(
            max_examples=wanted,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        strategy = schema[path][method].as_strategy(generation_mode=mode)
        with suppress(Unsatisfiable):  # no value of a free string is one that the schema forbids
            seed(number)(quiet(given(case=strategy)(lambda case: cases.send(case))))()
    return cases


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    failed = 0
    with tempfile.TemporaryDirectory() as folder, fleet(Path(folder)) as (router, engine):
        document = httpx.get(engine + "/openapi.json").json()
        for mode, share in ((GenerationMode.POSITIVE, 2 / 3), (GenerationMode.NEGATIVE, 1 / 3)):
            began_s = time.perf_counter()
            cases = run(router, document, round(args.cases * share), args.seed, mode)
            for finding in (*cases.errors[:10], *cases.hangs[:10], *cases.broken[:10]):
                print(finding)
            print(
                f"{mode.value}: {sum(cases.statuses.values())} answered in {time.perf_counter() - began_s:.0f} s "
                f"{dict(sorted(cases.statuses.items()))}, {len(cases.errors)} 5xx, {len(cases.hangs)} hangs, "
                f"{len(cases.broken)} without a reply, slowest {cases.slowest_s:.2f} s",
                flush=True,
            )
            failed += len(cases.errors) + len(cases.hangs) + len(cases.broken)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
