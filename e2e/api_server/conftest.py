"""A real etcd and kube-apiserver without nodes, for tests of what only an API server can say.

No controller runs: nothing is garbage collected, no pod is scheduled.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from e2e.binary import k8s

TOKEN = "test"
START_TIMEOUT_S = 60.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Path of a kubeconfig of a cluster administrator."""
    state = tmp_path_factory.mktemp("api-server")
    etcd, peer, secure = free_port(), free_port(), free_port()
    (state / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
    subprocess.run(["openssl", "genrsa", "-out", state / "sa.key", "2048"], check=True, capture_output=True)
    flags = {
        "etcd": {
            "data-dir": state / "etcd",
            "listen-client-urls": f"http://127.0.0.1:{etcd}",
            "advertise-client-urls": f"http://127.0.0.1:{etcd}",
            "listen-peer-urls": f"http://127.0.0.1:{peer}",
            "unsafe-no-fsync": "true",
        },
        "kube-apiserver": {
            "etcd-servers": f"http://127.0.0.1:{etcd}",
            "bind-address": "127.0.0.1",
            "secure-port": secure,
            "cert-dir": state / "certs",
            "service-cluster-ip-range": "10.97.0.0/16",
            "token-auth-file": state / "tokens.csv",
            "authorization-mode": "RBAC",
            "service-account-key-file": state / "sa.key",
            "service-account-signing-key-file": state / "sa.key",
            "service-account-issuer": "https://kubernetes.default.svc",
            "disable-admission-plugins": "ServiceAccount",
        },
    }
    processes = []
    for program, options in flags.items():
        command = [k8s(), program, *(f"--{name}={value}" for name, value in options.items())]
        with (state / f"{program}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    try:
        _wait(f"https://127.0.0.1:{secure}/readyz", state / "kube-apiserver.log")
        yield _write_kubeconfig(state / "kubeconfig", secure)
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def _wait(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, verify=False, headers={"authorization": f"Bearer {TOKEN}"}).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    pytest.fail(f"the API server did not start in {START_TIMEOUT_S} s:\n{log.read_text()[-2000:]}")


def _write_kubeconfig(path: Path, port: int) -> Path:
    cluster = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": TOKEN}}],
        "contexts": [
            {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}
        ],
        "current-context": "test",
    }
    path.write_text(yaml.safe_dump(config))
    return path
