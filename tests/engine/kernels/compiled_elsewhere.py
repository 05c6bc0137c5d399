"""Kernels compiled for a GPU that is not there, by a process without the interpreter that the tests otherwise run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def compiled(script: str) -> list[Any]:
    """What a process without the interpreter tells of kernels that it compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = [sys.executable, "-c", script]
    done = subprocess.run(process, env=environment, capture_output=True, text=True, check=True)
    told: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return told
