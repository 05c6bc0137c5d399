"""Routers to compare: ours from this checkout, compiled as in its image; the others from PyPI in their own environment.

    python benchmarks/router/peers.py            # install them into ~/.cache/shoal/bench

Every one gets one core, four static replicas, its default settings and its policy for prefix caches. FLOOR is no router:
what the kernel takes for the same bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from load import KEY

ENVIRONMENT = Path(os.environ.get("SHOAL_BENCH_ENV", Path.home() / ".cache" / "shoal" / "bench"))
ROOT = Path(__file__).parents[2]
COMPILED = ROOT / "build" / "compiled"  # ours as its image has it
PACKAGES = ("sglang-router==0.3.2", "vllm-router==0.1.17", "smg==1.13.0")


@dataclass(frozen=True, slots=True)
class Peer:
    """One router and how it is started; `{port}`, `{metrics}`, `{ports}`, `{urls}` and `{endpoints}` are filled in."""

    name: str
    version: str
    command: tuple[str, ...]

    def argv(self, port: int, metrics_port: int, engine_ports: list[int]) -> list[str]:
        urls = [f"http://127.0.0.1:{each}" for each in engine_ports]
        argv: list[str] = []
        for word in self.command:
            if word == "{urls}":
                argv += urls
            elif word == "{ports}":
                argv += map(str, engine_ports)
            elif word == "{endpoints}":
                argv += [part for url in urls for part in ("--endpoint", url)]
            else:
                argv.append(word.format(port=port, metrics=metrics_port, env=ENVIRONMENT))
        return argv


OURS = Peer(
    "shoal",
    version("shoal"),
    (
        "env",
        f"PYTHONPATH={COMPILED}",
        sys.executable,
        "-m",
        "shoal_router",
        "--port",
        "{port}",
        "--api-key",
        KEY,
        "{endpoints}",
    ),
)


FLOOR = Peer("bare relay", "in C", ("{env}/bin/bare_relay", "{port}", "{ports}"))


def _rust(program: str, release: str, *words: str) -> Peer:
    flags = ("--host", "127.0.0.1", "--port", "{port}", "--prometheus-port", "{metrics}")
    command = ("{env}/bin/" + program, *words, *flags, "--policy", "cache_aware", "--worker-urls", "{urls}")
    return Peer(program, release, command)


PEERS = (
    _rust("sglang-router", "0.3.2", "launch", "--log-level", "warn"),
    _rust("vllm-router", "0.1.17", "--log-level", "warning"),
    _rust("smg", "1.13.0", "launch", "--log-level", "warn"),
)


def compile_ours() -> None:
    """Compile ours as it is now."""
    subprocess.run(["make", "-s", "-C", ROOT, "compiled"], check=True, stdout=subprocess.DEVNULL)


def install() -> None:
    """Compile ours and the floor, and make the environment with the peers in it, if it is not there yet."""
    compile_ours()
    if not (ENVIRONMENT / "bin" / "smg").exists():
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        subprocess.run([ENVIRONMENT / "bin" / "pip", "install", "-q", *PACKAGES], check=True)
    source = Path(__file__).with_name("bare_relay.c")
    subprocess.run(["cc", "-O2", "-o", ENVIRONMENT / "bin" / "bare_relay", source], check=True)


if __name__ == "__main__":
    install()
    for peer in (OURS, FLOOR, *PEERS):
        print(peer.name, peer.version, " ".join(peer.command))
