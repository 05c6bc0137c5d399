"""What the engine as a library brings along."""

from __future__ import annotations

import subprocess
import sys

SERVERS = ("grpc", "fastapi", "uvicorn", "starlette", "prometheus_client")


def test_llm_imports_no_server() -> None:
    """Neither what it needs to load a model nor what it needs to run one."""
    script = (
        "import sys, shoal_engine.llm, shoal_engine.loading, shoal_engine.engine, shoal_engine.cpu_backend;"
        f"print([name for name in {SERVERS} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
