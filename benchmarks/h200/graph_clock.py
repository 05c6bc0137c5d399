"""Device time of one call, by replaying a CUDA graph of many over inputs that no cache holds. Knows no kernel."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

COLD_BYTES = 160 * 2**20  # inputs in rotation; an H200's L2 holds 60 MB
REPLAYS = 7


def copies_past_the_cache(tensor: Tensor) -> list[Tensor]:
    """`tensor` and as many copies as together exceed the L2 cache; at least two."""
    count = max(2, -(-COLD_BYTES // (tensor.numel() * tensor.element_size())))
    return [tensor] + [tensor.clone() for _ in range(count - 1)]


def us_per_call(call: Callable[[Any], object], inputs: Sequence[Any], replays: int = REPLAYS) -> float:
    """Median microseconds of `call` on one of the inputs, each used once a replay, the gap between kernels included."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(inputs[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in inputs:
            call(one)
    graph.replay()
    times: list[float] = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(inputs))
    return statistics.median(times)


def read_bandwidth() -> float:
    """Bytes per second of reading alone: the sum of 4 GiB, the better of two widths of reduction."""
    big = torch.randn(2**30, device="cuda")
    shapes = [big.view(-1, 8192), big.view(-1, 65536)]
    best = min(us_per_call(lambda x: torch.amax(x, dim=1), [one, one]) for one in shapes)
    return big.numel() * 4 / best * 1e6
