"""The workloads of routers.md section 4, as requests in time. Sends nothing.

shared: 32 system prompts of 2,048 tokens, Zipf 0.8, 60 requests/s; all fit in four caches, not in one. hot: 8 prompts,
Zipf 1.6 (one has half of the requests), 120/s. chat: 240 sessions of 6 turns; nothing is said there of sizes, and these
are such that an endless cache would serve 82.5 %, as the best routers there did (82). unique: 768 tokens, nothing shared,
60/s.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TOKEN_BYTES = 4
OUTPUT_TOKENS = 64
THINK_S = 2.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One request, `after_s` from the start or from the end of the turn before it; `left` further turns follow."""

    after_s: float
    prompt: str
    output_tokens: int = OUTPUT_TOKENS
    left: int = 0


def zipf(prompts: int, exponent: float, rate: float, rng: random.Random, seconds: float) -> Iterator[Turn]:
    systems = [rng.randbytes(2048 * TOKEN_BYTES // 2).hex() for _ in range(prompts)]
    weights = [1 / (i + 1) ** exponent for i in range(prompts)]
    when, number = 0.0, 0
    while when < seconds:
        yield Turn(when, rng.choices(systems, weights)[0] + f" question {number:06}" * 3)
        when += rng.expovariate(rate)
        number += 1


def unique(rng: random.Random, seconds: float) -> Iterator[Turn]:
    when = 0.0
    while when < seconds:
        yield Turn(when, rng.randbytes(768 * TOKEN_BYTES // 2).hex())
        when += rng.expovariate(60)


def chat(rng: random.Random, seconds: float) -> Iterator[Turn]:
    system = rng.randbytes(875).hex()
    for when in sorted(rng.uniform(0, seconds) for _ in range(240)):
        yield Turn(when, system + said(rng), rng.randint(16, 96), left=5)


def next_turn(turn: Turn, rng: random.Random) -> Turn:
    """What a chat goes on with: all that was said, the answer and something new."""
    answer = rng.randbytes(turn.output_tokens * TOKEN_BYTES // 2).hex()
    return Turn(
        rng.expovariate(1 / THINK_S), turn.prompt + answer + said(rng), rng.randint(16, 96), turn.left - 1
    )


def said(rng: random.Random) -> str:
    return rng.randbytes(rng.randint(100, 400)).hex()


@dataclass(frozen=True, slots=True)
class Workload:
    turns: Callable[[random.Random, float], Iterator[Turn]]
    cache_blocks: int = 2048


WORKLOADS = {
    "shared": Workload(lambda rng, seconds: zipf(32, 0.8, 60, rng, seconds)),
    "hot": Workload(lambda rng, seconds: zipf(8, 1.6, 120, rng, seconds)),
    "chat": Workload(chat, cache_blocks=4096),
    "unique": Workload(unique),
}
