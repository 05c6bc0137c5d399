"""What this card reads, copies and multiplies at best, measured in seconds before a model is loaded."""

from __future__ import annotations

import torch
from graph_clock import read_bandwidth, us_per_call
from roofline import Ceilings

COPY_BYTES = 4 * 2**30
GEMM_SIZE = 8192


def measure() -> Ceilings:
    """FP8 is not measured: it is taken to be as much above bf16 as on the H200 of design/numbers.md."""
    told = Ceilings()
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * COPY_BYTES / us_per_call(target.copy_, [source, source]) * 1e6
    del source, target
    square = torch.randn(GEMM_SIZE, GEMM_SIZE, device="cuda", dtype=torch.bfloat16)
    bf16 = 2 * GEMM_SIZE**3 / us_per_call(square.matmul, [square, square]) * 1e6
    del square
    read = read_bandwidth()
    torch.cuda.empty_cache()
    return Ceilings(read, copy, bf16, bf16 * told.fp8 / told.bf16)
