from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.server.running import Running, serving
from tests.engine.server.scripted_engine import Script


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """One server for all tests that leave it as they found it. The engine answers with the prompt's own tokens."""
    with serving(Script(max_model_len=512)) as running:
        yield running


@pytest.fixture(scope="module")
def closed_prompts() -> Iterator[None]:
    """For tests with replicas in their own process."""
    from tests.engine.server.in_process import prompts  # torch: not for every test's start

    yield
    prompts().close()
    prompts.cache_clear()
