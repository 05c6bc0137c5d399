"""What attention of long fresh prompts takes besides its products, on one H200: rotation, and where cuDNN finds its keys.

    PYTHONPATH=engine python3 benchmarks/h200/long_prompts.py             30 s: odd shapes are checked, then all is timed
    options: --skip-checks, --sweep (tilings of the rotation), --old FILE (an earlier triton_rotary.py, to stand beside)

A rotation stands beside torch's copy of as many bytes as it must move: each row of QKV in and out once, the angles, and for
cuDNN the keys once more. Attention takes keys and values from the rows that the rotation left, or copies them out of their
pages; both must give the same bits. Not the paged kernels (kernels.py), nor a whole step (workloads.py, E).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from graph_clock import COLD_BYTES, us_per_call
from kernel_cases import (
    DEVICE,
    LLAMA_8B,
    QWEN3_06B,
    Case,
    build,
    fresh,
    head_norms,
    random_caches,
    random_rows,
    relative_error,
    rope_table,
)
from kernels import TOLERANCE, run_side_by_side
from torch import Tensor

from shoal_engine.kernels import cudnn_prefill
from shoal_engine.kernels.cudnn_prefill import LEAST_TOKENS, StepRows
from shoal_engine.kernels.interface import AttentionScale, HeadLayout
from shoal_engine.kernels.reference import ReferenceKernels
from shoal_engine.kernels.triton_rotary import RotaryTiling, rotate_and_store

BLOCK_TOKENS = 16
LAYOUTS = {"0.6B": (QWEN3_06B, True), "8B": (LLAMA_8B, False)}  # with head norms or without
ROWS = (1, 8, 32, 128, 256, 1024, 8192)
PROMPTS = (fresh(1, 8192), fresh(8, 1024))
CHECKS = ("fresh prompts", "heads of 96", "float8 cache 0.6B", "float32")
CHECKS_UNTIL_S = 40.0
TILINGS = [
    RotaryTiling(heads, elements)
    for heads, elements in ((4, 128), (8, 256), (8, 512), (16, 256), (16, 512), (32, 512), (32, 1024))
]

Rotation = Callable[..., Tensor]


class Step:
    """Prompts before their rotation, and where it writes."""

    def __init__(self, case: Case, layout: HeadLayout, has_norm: bool) -> None:
        self.tokens, self.layout = case.tokens, layout
        self.batch, blocks = build(case, BLOCK_TOKENS)
        self.cache, self.twin_cache = random_caches(2, blocks, layout, BLOCK_TOKENS)
        self.rope = rope_table(max(case.contexts), layout.head_dim)
        self.norms = head_norms(layout, has_norm)
        self.qkv = random_rows(case.tokens, layout.qkv_size)
        self.keys = random_rows(case.tokens, layout.kv_size).view(-1, layout.num_kv_heads, layout.head_dim)

    @property
    def is_for_cudnn(self) -> bool:
        return self.tokens >= LEAST_TOKENS

    def rotated(self, rotation: Rotation, qkv: Tensor, has_keys: bool = False) -> Tensor:
        keys = (self.keys,) if has_keys else ()
        return rotation(qkv, self.layout, self.rope, self.batch, self.cache, *self.norms, 1e-6, *keys)

    def rows(self) -> StepRows:
        q = self.rotated(rotate_and_store, self.qkv, has_keys=True)
        values = self.qkv.view(len(q), -1, self.layout.head_dim)[:, -self.layout.num_kv_heads :]
        return StepRows(q, self.keys, values)

    def attended(self, rows: StepRows) -> Tensor:
        scale = AttentionScale(self.layout.head_dim**-0.5)
        (dense,) = cudnn_prefill.dense_prefills(self.batch, self.layout, scale, torch.bfloat16)
        return cudnn_prefill.attend_fresh(rows, self.layout, self.batch, self.cache, scale, dense)

    def error(self) -> float:
        """The worst of: queries, pages, and keys as rows."""
        twin, twin_cache = ReferenceKernels(), self.twin_cache
        q = self.rotated(rotate_and_store, self.qkv, has_keys=True)
        want = twin.rotate_and_store(
            self.qkv, self.layout, self.rope, self.batch, twin_cache, *self.norms, 1e-6
        )
        page, at = self.batch.slots // BLOCK_TOKENS, self.batch.slots % BLOCK_TOKENS
        paged, twin_paged = self.cache[page, :, :, at], twin_cache[page, :, :, at]
        pairs = ((q, want), (paged, twin_paged), (self.keys, twin_paged[:, 0]))
        return max(relative_error(got, right) for got, right in pairs)

    def us(self, rotation: Rotation, has_keys: bool = False) -> float:
        count = max(1, min(80, COLD_BYTES // self.qkv.nbytes + 1))  # more than a cache holds
        inputs = [self.qkv, *(self.qkv.clone() for _ in range(count - 1))]
        return us_per_call(partial(self.rotated, rotation, has_keys=has_keys), inputs)

    def copy_us(self, has_keys: bool) -> float:
        row = self.layout.qkv_size + has_keys * self.layout.kv_size // 2 + self.layout.head_dim
        sources = [
            random_rows(self.tokens, row) for _ in range(max(1, min(80, COLD_BYTES // (self.tokens * row))))
        ]
        return us_per_call(lambda x: torch.empty_like(x).copy_(x), sources)


def rotations(old: Rotation | None) -> int:
    """Print a line for each layout and number of tokens; return how many are wrong."""
    wrong = 0
    for name, (layout, has_norm) in LAYOUTS.items():
        for rows in ROWS:
            step = Step(fresh(1, rows), layout, has_norm)
            error, us = step.error(), step.us(rotate_and_store, step.is_for_cudnn)
            wrong += not error <= TOLERANCE
            line = f"rotate {name:5} {rows:5} {us:7.2f} us, a copy {step.copy_us(step.is_for_cudnn):7.2f} us"
            if old is not None:
                line += f", before {step.us(old):7.2f} us"
            print(f"{line}  err {error:.1e}{'' if error <= TOLERANCE else ' WRONG'}", flush=True)
    return wrong


def attentions(old: Rotation | None) -> int:
    wrong = 0
    for name, (layout, has_norm) in LAYOUTS.items():
        for case in PROMPTS:
            step = Step(case, layout, has_norm)
            rows = step.rows()
            paged = StepRows(rows.queries)
            same = torch.equal(step.attended(rows), step.attended(paged))
            wrong += not same
            rows_us, pages_us = (us_per_call(step.attended, [one] * 8) for one in (rows, paged))
            now_us, before_us = _whole_us(step, old or rotate_and_store)
            print(
                f"attend {name:5} {case.name:12} from rows {rows_us:7.1f} us, from pages {pages_us:7.1f} us; with "
                f"the rotation {now_us:7.1f} us and {before_us:7.1f} us{'' if same else ' WRONG: other bits'}",
                flush=True,
            )
    return wrong


def _whole_us(step: Step, old: Rotation) -> tuple[float, float]:
    """Rotation and attention: from rows; and by way of the pages with another rotation."""
    now = us_per_call(lambda _: step.attended(step.rows()), [None] * 8)
    before = us_per_call(lambda _: step.attended(StepRows(step.rotated(old, step.qkv))), [None] * 8)
    return now, before


def first_calls() -> None:
    """cuDNN builds a plan for every shape and every stride, which is why `DensePrefill.cut` makes few of them."""
    whole = torch.randn(1, 2500, 32, 128, device=DEVICE, dtype=torch.bfloat16)
    for label, tokens, apart in (
        ("torch's first", 1024, 1024),
        ("a shape", 2048, 2048),
        ("a stride", 2048, 2100),
    ):
        one = whole[:, :tokens].transpose(1, 2)
        one = one.as_strided(one.shape, (apart * 4096, *one.stride()[1:]))
        began = time.perf_counter()
        cudnn_prefill._attended(one[:, :16], one[:, 16:24], one[:, 24:], 0.1, True)
        torch.cuda.synchronize()
        print(f"first call of {label}: {(time.perf_counter() - began) * 1e3:.0f} ms", flush=True)


def sweep() -> None:
    for tiling in TILINGS:
        for name, (layout, has_norm) in LAYOUTS.items():
            steps = [Step(fresh(1, rows), layout, has_norm) for rows in ROWS]
            us = [step.us(partial(rotate_and_store, tiling=tiling), step.is_for_cudnn) for step in steps]
            print(f"{tiling} {name:5} {' '.join(f'{value:7.2f}' for value in us)} us", flush=True)


def rotation_of(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("old_rotary", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.rotate_and_store


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", help="an earlier triton_rotary.py")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--skip-checks", action="store_true")
    options = parser.parse_args()
    began, failures = time.monotonic(), 0
    if not options.skip_checks:
        jobs = {f"check {group}": ["--check", group] for group in CHECKS}
        failures = run_side_by_side(jobs, CHECKS_UNTIL_S)
    old = rotation_of(options.old) if options.old else None
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    failures += rotations(old) + attentions(old)
    first_calls()
    if options.sweep:
        sweep()
    print(f"done after {time.monotonic() - began:.0f} s, {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
