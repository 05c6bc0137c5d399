"""The whole engine in the test's own process and event loop: routes, texts, scheduler and a tiny model of random weights."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from shoal_api.options import ModelOptions
from shoal_engine.engine import Engine
from shoal_engine.messages import Outputs, Submit
from shoal_engine.server.app import build_app
from shoal_engine.server.envelope import Keys
from shoal_engine.server.generation import Generation
from shoal_engine.server.held_tags import HeldTags
from shoal_engine.server.limits import Limits
from shoal_engine.server.metrics import Metrics
from shoal_engine.server.open_requests import OpenRequests
from shoal_engine.server.prompts import Prompts
from shoal_engine.server.service import Service
from tests.engine.server.running import model_text

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 128,
    "vocab_size": 49_152,  # of SmolLM2's tokenizer
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "eos_token_id": 2,
}


@functools.cache
def tiny_engine(number: int) -> Engine:
    """Engines of different numbers are replicas: the same weights, each with a cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        return Engine.load(
            ModelOptions(
                model=folder,
                load_format="dummy",
                dtype="float32",
                num_threads=1,
                deterministic=True,
                max_num_seqs=64,
                kv_cache_memory_bytes=8 << 20,
            )
        )


@functools.cache
def prompts() -> Prompts:
    """One for all replicas. Whoever has used it closes it: its template renders in a process."""
    text = model_text()
    return Prompts(text.tokenizer, text.template, Limits(), text.longest_token_bytes)


class Pump:
    """In place of EngineClient: hands requests to an engine in this process, and steps it while there is work."""

    def __init__(self, engine: Engine, metrics: Metrics, steps: Iterator[int]) -> None:
        """steps: how many the engine makes each time before anybody may look at what they did."""
        self.engine = engine
        self.ready = engine.ready
        self.loading = None
        self.tags = HeldTags()
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submitted: list[Submit] = []
        self._open = OpenRequests(metrics)
        self._steps = steps
        self._work = asyncio.Event()

    def check_room(self, count: int) -> None:
        """There always is."""

    def stalled_s(self) -> float:
        return 0.0

    def hangs(self) -> bool:
        return False

    def submit(self, generation: Generation, submits: Sequence[Submit]) -> None:
        self._open.add(generation, submits)
        self.submitted += generation.submits
        for submit in generation.submits:
            self.engine.add(msgspec.msgpack.decode(msgspec.msgpack.encode(submit), type=Submit))
        self._work.set()

    def abort(self, generation: Generation, choices: Sequence[int] | None = None) -> None:
        submits = generation.submits
        chosen = submits if choices is None else [submits[choice] for choice in choices]
        self.engine.abort(
            self._open.end((each.id for each in chosen), "abort" if choices is None else "stop")
        )

    async def run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self.engine.has_work:
                for _ in range(next(self._steps)):
                    outputs = self.engine.step()
                    self._open.deliver(Outputs(outputs, self.engine.stats()), time.monotonic())
                for _ in range(4):  # each handler wakes, reads and writes
                    await asyncio.sleep(0)


@dataclass(slots=True)
class Replica:
    service: Service
    pump: Any
    http: httpx.AsyncClient = field(repr=False)

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return await self.http.post(
            path, content=content, headers={"content-type": "application/json", **named}
        )


@contextlib.asynccontextmanager
async def replica(
    number: int, steps: Iterator[int] | None = None, version: str = "1"
) -> AsyncIterator[Replica]:
    metrics, limits = Metrics(), Limits()
    pump: Any = Pump(tiny_engine(number), metrics, steps or itertools.repeat(1))
    service = Service("tiny", "/models/tiny", pump, metrics, limits, version)
    metrics.on_ready(pump.ready)
    service.prompts = prompts()
    running = asyncio.create_task(pump.run())
    transport = httpx.ASGITransport(build_app(service, Keys(())))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as http:
            yield Replica(service, pump, http)
    finally:
        running.cancel()
