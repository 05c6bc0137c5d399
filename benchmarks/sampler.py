"""Microseconds per call of the sampler, beside what torch takes for the same choice, in one run.

    python benchmarks/sampler.py [--rows 1 16 256] [--vocab 49152 151936] [--dtype float32] [--device cpu]

A call chooses one token for each row. Every case has its peer, written with plain torch operations: argmax for greedy,
softmax and multinomial for a draw, a full sort before it for top-p, topk for top-k, a count table for penalties,
log-softmax and topk for logprobs. "text" logits fall off as those of a language model do (nucleus of 0.9: tens of
tokens); "flat" ones have a nucleus of thousands, which is the sampler's worst case. Ours and the peer alternate over
fresh logits, and the best of several rounds counts for both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.sampler import Sampler
from shoal_engine.sampling_params import SamplingParams

ROUNDS = 5
ROUND_S = 0.08
PROMPT_TOKENS = 512
Peer = Callable[[Tensor], object]


@dataclass(frozen=True)
class Case:
    name: str
    params: SamplingParams
    peer: Peer
    shape: str = "text"


def multinomial(x: Tensor) -> Tensor:
    return torch.multinomial(x.float().softmax(-1), 1)


def sorted_top_p(x: Tensor) -> Tensor:
    probabilities, order = x.float().softmax(-1).sort(-1, descending=True)
    beyond = probabilities.cumsum(-1) - probabilities > 0.9
    return order.gather(1, torch.multinomial(probabilities.masked_fill(beyond, 0.0), 1))


def top_k(x: Tensor) -> Tensor:
    values, order = x.float().topk(50)
    return order.gather(1, torch.multinomial(values.softmax(-1), 1))


def log_softmax_top(x: Tensor) -> tuple[object, ...]:
    chosen = x.argmax(-1)
    logprobs = x.float().log_softmax(-1)
    logprobs.gather(1, chosen.unsqueeze(1)).tolist()
    return tuple(part.tolist() for part in logprobs.topk(5))


class CountTable:
    """The usual way: a dense table of counts for every row."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape)
        if shape not in self._seen:
            prompt = torch.randint(x.shape[1], (x.shape[0], PROMPT_TOKENS), device=x.device)
            seen = torch.zeros(shape, dtype=torch.bool, device=x.device).scatter_(1, prompt, True)
            self._seen[shape] = seen, torch.zeros(shape, dtype=torch.int32, device=x.device)
        seen, counts = self._seen[shape]
        x = x.float()
        x = torch.where(seen | (counts > 0), torch.where(x > 0, x / 1.1, x * 1.1), x)
        x = x - 0.2 * counts - 0.1 * (counts > 0)
        chosen = x.argmax(-1, keepdim=True)
        counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.int32))
        return chosen


def cases() -> list[Case]:
    penalties = SamplingParams(
        temperature=0.0, repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.1
    )
    return [
        Case("greedy", SamplingParams(temperature=0.0), lambda x: x.argmax(-1)),
        Case("temperature 0.7", SamplingParams(temperature=0.7), lambda x: multinomial(x / 0.7)),
        Case("top-p 0.9", SamplingParams(top_p=0.9), sorted_top_p),
        Case("top-p 0.9, flat", SamplingParams(top_p=0.9), sorted_top_p, "flat"),
        Case("top-k 50", SamplingParams(top_k=50), top_k),
        Case("greedy, penalties", penalties, CountTable()),
        Case("greedy, logprobs 5", SamplingParams(temperature=0.0, logprobs=5), log_softmax_top),
    ]


def logits(shape: str, rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """A few different batches, so that neither branch prediction nor the cache remembers the last call."""
    torch.manual_seed(rows)
    batches = []
    for _ in range(16 if rows == 1 else 2):
        x = torch.randn(rows, vocab)
        if shape == "text":
            falling = -1.6 * torch.arange(1, vocab + 1).log()
            x = torch.stack([falling[torch.randperm(vocab)] for _ in range(rows)]) + 0.3 * x
        else:
            x *= 2.0
        batches.append(x.to(dtype=dtype, device=device))
    return batches


def ours(params: SamplingParams, rows: int, vocab: int, device: torch.device) -> Peer:
    sampler = Sampler(vocab, device, seed=0)
    ids = [f"request-{row}" for row in range(rows)]
    for request_id in ids:
        sampler.add(request_id, params, torch.randint(vocab, (PROMPT_TOKENS,)).tolist())

    def call(x: Tensor) -> object:
        return sampler.sample(x, ids).logprobs()

    return call


def round_us(call: Peer, batches: list[Tensor]) -> float:
    device, calls, started = batches[0].device, 0, time.perf_counter()
    while time.perf_counter() - started < ROUND_S:
        for batch in batches:
            call(batch)
        calls += len(batches)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / calls * 1e6


def compare(
    case: Case, rows: int, vocab: int, dtype: torch.dtype, device: torch.device
) -> tuple[float, float]:
    """Best round of ours and of the peer, us."""
    batches = logits(case.shape, rows, vocab, dtype, device)
    contenders = (ours(case.params, rows, vocab, device), case.peer)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, taken in zip(contenders, times, strict=True):
            taken.append(round_us(call, batches))
    return min(times[0]), min(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--vocab", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    print(
        f"torch {torch.__version__}, {device}, {options.dtype} logits, {options.threads} threads; us per call"
    )
    print(f"{'vocabulary':>10} {'rows':>5} {'case':<20} {'shoal':>10} {'torch':>10} {'torch/shoal':>12}")
    with torch.inference_mode():
        for vocab in options.vocab:
            for rows in options.rows:
                for case in cases():
                    mine, peer = compare(case, rows, vocab, dtype, device)
                    print(
                        f"{vocab:>10} {rows:>5} {case.name:<20} {mine:>10.0f} {peer:>10.0f} {peer / mine:>11.1f}x",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
