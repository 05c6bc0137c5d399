"""What the engine's schema allows, and what it forbids, through a real router: no 5xx, no cut connection.

benchmarks/router/schemathesis_cases.py does the same ten thousand times, with a real model.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode

from tests.engine.server.running import Running, serving, until
from tests.engine.server.scripted_engine import Script
from tests.router.test_process import ENVIRONMENT, command, free_port

PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize")


@pytest.fixture(scope="module")
def engine() -> Iterator[Running]:
    with serving(Script()) as running:
        yield running


@pytest.fixture(scope="module")
def router(engine: Running) -> Iterator[str]:
    """URL of a router in front of the engine."""
    port = free_port()
    flags = ("--endpoint", engine.url, "--port", str(port))
    process = subprocess.Popen(command(*flags), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None
        try:
            return httpx.get(url + "/ready").status_code == 200
        except httpx.HTTPError:
            return False

    try:
        until(ready)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", PATHS)
def test_no_case_of_the_schema_is_a_server_error(
    path: str, mode: GenerationMode, engine: Running, router: str
) -> None:
    document = engine.http.get("/openapi.json").json()
    seen: set[int] = set()

    @settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schemathesis.openapi.from_dict(document)[path]["POST"].as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body["max_tokens"] = 2
        seen.add(case.call(base_url=router, timeout=20).status_code)

    run()
    assert seen
    assert max(seen) < 500, seen
