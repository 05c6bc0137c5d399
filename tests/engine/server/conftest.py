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
