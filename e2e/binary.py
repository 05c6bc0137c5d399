"""The one binary of e2e/cluster: kubectl, helm, etcd, kube-apiserver and the rest by its first argument."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

CLUSTER = Path(__file__).parent / "cluster"


@functools.cache
def k8s() -> str:
    """Its path: $K8S, else the one in the cache, built when it is not there yet (8 minutes, once)."""
    if given := os.environ.get("K8S"):
        return given
    subprocess.run(["bash", CLUSTER / "build.sh"], check=True)
    # The file in the cache has another name, and the binary goes by its name.
    link = "mkdir -p $STATE/bin && ln -sfn $K8S $STATE/bin/k8s && echo $STATE/bin/k8s"
    command = ["bash", "-c", f"source {CLUSTER / 'cluster.sh'} && {link}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
