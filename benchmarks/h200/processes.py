"""One process per engine: started, timed, and started again behind the workload it died in. Measures only starts."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from figures import Figure, read_figures
from one_engine import READY, engine_options, shape_of

SCRIPT = Path(__file__).with_name("workloads.py")
SHOWN_CHARS = 1500  # of what a process that failed has printed


class Processes:
    """The measuring processes of one engine. `argv` is the command line they repeat."""

    def __init__(self, engine: str, args: argparse.Namespace, argv: Sequence[str], folder: Path) -> None:
        self._engine, self._args, self._folder = engine, args, folder
        self._command = [sys.executable, str(SCRIPT), *argv, "--child", engine, "--folder", str(folder)]
        self._begun = folder / "begun"

    def figures(self, workloads: Sequence[str]) -> list[Figure]:
        """Of all workloads that came to an end; `start` first, while nothing else holds the card's memory."""
        starts = self._starts() if "start" in workloads else []
        self._begun.write_text("")
        while left := [name for name in workloads if name != "start" and name not in self._names_begun()]:
            before = len(self._names_begun())
            if self._run(left):
                break
            if len(self._names_begun()) == before:
                print(f"{self._engine} does not start; left out: {', '.join(left)}", flush=True)
                break
            print(
                f"{self._engine}: a process failed in {self._names_begun()[-1]}; the next goes on", flush=True
            )
        return starts + read_figures(self._folder / f"{self._engine}.jsonl")

    def _names_begun(self) -> list[str]:
        return self._begun.read_text().split()

    def _run(self, workloads: Sequence[str]) -> bool:
        try:
            done = subprocess.run(
                [*self._command, "--workloads", ",".join(workloads)], timeout=self._args.limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"{self._engine}: took longer than --limit-s {self._args.limit_s:.0f}", flush=True)
            return False
        return done.returncode == 0

    def _starts(self) -> list[Figure]:
        """Seconds from a command line to its first token: with an empty kernel cache, with the one that left, and with
        an empty one from what `shoal build` made.

        Python's bytecode is there in all.
        """
        caches = self._caches("kernels")
        if not self._args.cpu_tiny:
            caches["PYTHONPYCACHEPREFIX"] = str(self._folder / "bytecode")
            compile_imports(caches)
        kinds = {"start cold": (caches, self._folder), "start again": (caches, self._folder)}
        if self._engine == "shoal" and not self._args.cpu_tiny:
            kinds["start built"] = ({**caches, **self._caches("unused")}, self._folder / "built")
        found = []
        for kind, (environ, folder) in kinds.items():
            if kind == "start built" and not self._build(environ, folder / "model"):
                break
            ready_s, printed = self._start(environ, folder)
            if ready_s is None:
                print(f"{self._engine}: {kind} failed\n{printed[-SHOWN_CHARS:]}", flush=True)
                break
            phases = json.loads(printed.rpartition(READY)[2])
            name, fp8 = shape_of(self._args).name, bool(self._args.quantization)
            found.append(Figure(self._engine, name, fp8, kind, "s", ready_s, None, phases))
        return found

    def _caches(self, name: str) -> dict[str, str]:
        return {variable: str(self._folder / f"{self._engine}-{name}") for variable in _KERNEL_CACHES}

    def _build(self, environ: Mapping[str, str], output: Path) -> bool:
        command = [sys.executable, "-m", "shoal_engine.build_command", str(self._folder / "model")]
        command += ["-o", str(output), "--load-format", "dummy"]
        for name, value in engine_options(self._args).items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        return subprocess.run(command, env={**os.environ, **environ}, check=False).returncode == 0

    def _start(self, environ: Mapping[str, str], folder: Path) -> tuple[float | None, str]:
        """Seconds until it is ready, None if it never is, and what it printed so far. How it ends takes no time."""
        started = time.perf_counter()
        with subprocess.Popen(
            [*self._command, "--folder", str(folder), "--workloads", "start"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environ},
        ) as process:
            limit = threading.Timer(self._args.limit_s, process.kill)
            limit.start()
            printed, ready_s = "", None
            assert process.stdout is not None
            for line in process.stdout:
                printed += line
                if line.startswith(READY):
                    ready_s = time.perf_counter() - started
                    break
            process.communicate()
            limit.cancel()
        return ready_s, printed


def compile_imports(environ: Mapping[str, str]) -> None:
    """Python's bytecode of what engines import, which an installation has and a bare machine's read-only folders lack."""
    modules = "torch, triton, shoal_engine.llm, shoal_engine.start_kernels, shoal_engine.build_command"
    subprocess.run([sys.executable, "-c", f"import {modules}"], env={**os.environ, **environ}, check=False)


_KERNEL_CACHES = ("TRITON_CACHE_DIR", "SHOAL_CACHE_DIR", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR")
