"""`shoal up` as a subprocess with fake engines and router, for tests that watch it from outside."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import yaml

from shoal_operator.local.ports import free_ports

UP = Path(__file__).parent / "up_with_fakes.py"
WAIT_S = 20.0
MODEL = {"uri": "file:///models/tiny"}
CACHE = {"type": "HostPath", "path": "/srv/models"}


def manifest(name: str = "fake", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.shoal.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name},
        "spec": {"model": MODEL, "resources": {"acceleratorCount": 0}, "cache": CACHE, **spec},
    }


class Up:
    """One run of `shoal up` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._reader: threading.Thread | None = None
        (folder / "store/tiny").mkdir(parents=True)

    def start(self, lives: list[dict[str, Any]], *manifests: dict[str, Any]) -> None:
        """Runs `manifests` as one multi-document file; its engines live as told."""
        (self.folder / "script.json").write_text(json.dumps(lives))
        (self.folder / "m.yaml").write_text(yaml.safe_dump_all(manifests))
        self.run("-f", "m.yaml")

    def command(self, *arguments: str) -> list[str]:
        command = [sys.executable, str(UP), str(self.folder / "script.json"), *arguments]
        return [*command, "--port", str(self.port), "--models-dir", "store", "--ready-file", "ready.json"]

    def run(self, *arguments: str, stdout: str = "read") -> None:
        self.process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        if stdout == "closed":
            self.process.stdout.close()
        else:
            self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
            self._reader.start()

    def _read(self, stdout: IO[str]) -> None:
        self._lines.extend(iter(stdout.readline, ""))

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def pids(self) -> list[int]:
        """Of every engine ever started, and of its children."""
        starts = self.folder / "script.json.starts"
        return [int(line.split()[1]) for line in starts.read_text().splitlines()] if starts.exists() else []

    def wait(self, condition: Callable[[], object]) -> None:
        assert self.process is not None
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None or condition(), self.output
            assert time.monotonic() < deadline_s, self.output
            time.sleep(0.02)

    def wait_ready(self) -> dict[str, Any]:
        """The content of the ready file."""
        self.wait((self.folder / "ready.json").exists)
        facts: dict[str, Any] = json.loads((self.folder / "ready.json").read_text())
        return facts

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> int:
        """Waits for the exit code; the output is then complete."""
        assert self.process is not None
        code = self.process.wait(WAIT_S)
        if self._reader is not None:
            self._reader.join(WAIT_S)
        assert not re.search(r"^Traceback", self.output, re.M)  # a child's has its name before it
        return code


@contextlib.contextmanager
def stream(up: Up) -> Iterator[Iterator[str]]:
    """The lines of a streamed answer through the router; it takes 2 s."""
    body = {"stream": True}
    with httpx.stream("POST", f"{up.url}/v1/chat/completions", json=body, trust_env=False) as reply:
        yield (line for line in reply.iter_lines() if line)
