"""A cluster as its user sees it: kubectl and helm. It is not a client library: what it can do, a user can type."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from e2e.waiting import Found, wait_until

ROOT = Path(__file__).parents[1]
OWN_KUBECONFIG = ROOT / ".cluster" / "kubeconfig"
TIMEOUT_S = 300.0
LOG_LINES = 400

Fields = dict[str, Any]


class Cluster:
    """Commands run in the root of the repository, so a manifest or a chart is named as in the documentation."""

    def __init__(self, kubeconfig: Path) -> None:
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "KUBECACHEDIR": str(ROOT / ".cluster" / "kubectl"),
            "PATH": f"{ROOT / '.cluster' / 'bin'}:{os.environ['PATH']}",
        }

    def run(self, *command: str, stdin: str = "", timeout_s: float = TIMEOUT_S) -> str:
        """Standard output. Raises AssertionError with what it said when the command fails."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment,
            input=stdin,
            text=True,
            capture_output=True,
            timeout=timeout_s,
        )
        if done.returncode:
            raise AssertionError(f"$ {' '.join(command)}\n{done.stderr.strip()}\n{done.stdout.strip()}")
        return done.stdout

    def kubectl(self, *arguments: str, stdin: str = "", timeout_s: float = TIMEOUT_S) -> str:
        return self.run("kubectl", *arguments, stdin=stdin, timeout_s=timeout_s)

    def helm(self, *arguments: str) -> str:
        return self.run("helm", *arguments, timeout_s=600.0)

    def apply(self, manifest: Mapping[str, Any] | Path) -> str:
        """What kubectl said. Raises AssertionError when the API server refuses it."""
        if isinstance(manifest, Path):
            return self.kubectl("apply", "-f", str(manifest))
        return self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def get(self, kind: str, name: str, namespace: str = "default") -> Fields:
        """The object; {} when there is none."""
        found = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return dict(json.loads(found)) if found else {}

    def list(self, kind: str, selector: str = "", namespace: str = "default") -> list[Fields]:
        """All objects of a kind with these labels."""
        found = self.kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "json")
        return list(json.loads(found)["items"])

    def delete(self, kind: str, name: str, *flags: str, namespace: str = "default") -> None:
        """Waits until it is gone; no error when it was not there."""
        self.kubectl("delete", kind, name, "-n", namespace, "--ignore-not-found", *flags)

    def wait(
        self, predicate: Callable[[], Found | None], timeout_s: float, what: str = "the state waited for"
    ) -> Found:
        """The first true result; AssertionError with pods and events when none comes in time."""
        return wait_until(predicate, what, timeout_s, self.describe)

    def describe(self, namespace: str = "default") -> str:
        """Deployments, pods and the newest events, for the report of a failure."""
        objects = self.kubectl("get", "llmd,pods", "-n", namespace, "-o", "wide")
        events = self.kubectl("get", "events", "-n", namespace, "--sort-by=.lastTimestamp")
        return "\n".join([objects, *events.splitlines()[-25:]])

    def collect(self, folder: Path, namespace: str = "default") -> None:
        """Writes what a failure is understood by into `folder`: objects, events, and the logs of every pod."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "overview.txt").write_text(self.describe(namespace))
        kinds = "llmd,pods,configmaps,services,poddisruptionbudgets,persistentvolumeclaims"
        (folder / "objects.yaml").write_text(self.kubectl("get", kinds, "-n", namespace, "-o", "yaml"))
        (folder / "events.yaml").write_text(self.kubectl("get", "events", "-n", namespace, "-o", "yaml"))
        for pod in self.list("pods", namespace=namespace):
            name = pod["metadata"]["name"]
            for suffix, flags in (("log", ()), ("previous.log", ("--previous",))):
                try:
                    lines = self.kubectl(
                        "logs", name, "-n", namespace, "--all-containers", f"--tail={LOG_LINES}", *flags
                    )
                except AssertionError as error:  # a pod that never started has no log
                    lines = f"{error}\n"
                (folder / f"{name}.{suffix}").write_text(lines)
