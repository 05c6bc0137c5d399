"""What a benchmark sends: how many requests, how long, how alike, how soon. Values and random numbers alone."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FIRST_ID = 100  # below it vocabularies keep their special tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Lengths are in tokens. With `range_ratio` r each lies anywhere within 1 - r and 1 + r times its mean."""

    num_prompts: int
    input_len: int  # behind the prefix
    output_len: int
    prefix_len: int = 0  # first tokens that all prompts share
    range_ratio: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sized:
    """One request of a load."""

    prompt: list[int]
    output_tokens: int


def requests_of(load: Load, vocab_size: int) -> list[Sized]:
    """The same for the same load: random ids, so that prompts share their prefix and nothing else."""
    rng = random.Random(load.seed)
    ids = range(min(FIRST_ID, vocab_size // 2), vocab_size)
    prefix = rng.choices(ids, k=load.prefix_len)
    return [
        Sized(
            prefix + rng.choices(ids, k=_length(rng, load.input_len, load.range_ratio)),
            _length(rng, load.output_len, load.range_ratio),
        )
        for _ in range(load.num_prompts)
    ]


def arrivals_s(load: Load, requests_per_s: float | None) -> Iterator[float]:
    """Seconds after the start at which each request comes; without a rate all come at once, else as Poisson's do."""
    rng = random.Random(load.seed + 1)
    at_s = 0.0
    for _ in range(load.num_prompts):
        yield at_s
        at_s += rng.expovariate(requests_per_s) if requests_per_s else 0.0


def add_load_flags(
    parser: argparse.ArgumentParser, *, num_prompts: int, input_len: int, output_len: int
) -> None:
    """Flags with the names that `vllm bench` has; the seed is added by the caller."""
    group = parser.add_argument_group("load", "What is sent.")
    group.add_argument(
        "--num-prompts", type=at_least(1), default=num_prompts, metavar="N", help=f"Default: {num_prompts}."
    )
    group.add_argument(
        "--input-len",
        type=at_least(1),
        default=input_len,
        metavar="N",
        help=f"Prompt tokens behind the prefix. Default: {input_len}.",
    )
    group.add_argument(
        "--output-len",
        type=at_least(1),
        default=output_len,
        metavar="N",
        help=f"New tokens, end-of-sequence ignored. Default: {output_len}.",
    )
    group.add_argument(
        "--prefix-len",
        type=at_least(0),
        default=0,
        metavar="N",
        help="First tokens that all prompts share. Default: 0.",
    )
    group.add_argument(
        "--range-ratio",
        type=_ratio,
        default=0.0,
        metavar="R",
        help="Lengths lie anywhere within 1 - R and 1 + R times theirs. Default: 0.",
    )


def load_of(args: argparse.Namespace, seed: int) -> Load:
    return Load(
        num_prompts=args.num_prompts,
        input_len=args.input_len,
        output_len=args.output_len,
        prefix_len=args.prefix_len,
        range_ratio=args.range_ratio,
        seed=seed,
    )


def at_least(low: int) -> Callable[[str], int]:
    """The `type=` of a whole number from `low` on."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}")
        return value

    return whole_number


def _ratio(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError("must be from 0 to below 1")
    return value


def _length(rng: random.Random, mean: int, ratio: float) -> int:
    low, high = round(mean * (1 - ratio)), round(mean * (1 + ratio))
    return max(1, rng.randint(low, high))
