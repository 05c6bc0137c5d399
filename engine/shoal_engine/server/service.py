"""The served model as the routes see it: is it there, may more be asked of it, and which answers are under
way.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from shoal_api.spans import SpanSender
from shoal_engine.errors import EngineError, EngineUnavailable
from shoal_engine.messages import Ready
from shoal_engine.server.engine_client import EngineClient
from shoal_engine.server.limits import Limits
from shoal_engine.server.metrics import Metrics
from shoal_engine.server.prompts import Prompts


class OpenAnswer(Protocol):
    """An answer under way, as far as the service cares."""

    def tick(self, now_s: float) -> None: ...

    def fail(self, error: EngineError) -> None: ...


@dataclass(slots=True)
class Service:
    """`prompts` and `defaults` come when the tokenizer is loaded, the client's `ready` when the engine is."""

    model: str
    root: str  # where the model came from
    client: EngineClient
    metrics: Metrics
    limits: Limits
    version: str
    prompts: Prompts | None = None
    defaults: Mapping[str, float] = field(default_factory=dict)
    seeds: random.Random = field(default_factory=random.Random)  # for streams that others may continue
    sender: SpanSender | None = None  # of traces, when there are to be any
    draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    answers: set[OpenAnswer] = field(default_factory=set)

    def open(self) -> tuple[Prompts, Ready]:
        """What serving needs. Raises EngineUnavailable while it is not there, or not any more."""
        if self.client.ended.done():
            raise EngineUnavailable("The engine process has ended. Try again, or another replica.")
        if self.draining:
            raise EngineUnavailable("This replica is shutting down. Try another one.", code="draining")
        if self.prompts is None or self.client.ready is None:
            raise EngineUnavailable(
                "The model is still being loaded. /ready tells when it is there.", code="loading"
            )
        return self.prompts, self.client.ready

    @property
    def fingerprint(self) -> str:
        """Changes when the same request may get another answer: model, number format, device, version."""
        ready = self.client.ready
        parts = (
            self.version,
            self.root,
            ready and ready.dtype,
            ready and ready.device,
            ready and ready.max_model_len,
        )
        return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def fail_all(self, error: EngineError) -> None:
        """End every answer under way."""
        for answer in list(self.answers):
            answer.fail(error)

    def tick(self, now_s: float) -> None:
        for answer in list(self.answers):
            answer.tick(now_s)
