"""Attention of decodes in registers: what can be said of it without a GPU. Its results are benchmarks/h200/kernels.py's."""

from __future__ import annotations

import itertools

import pytest
import torch

from shoal_engine.kernels import gluon_decode
from shoal_engine.kernels.gluon_decode import serves, tile_for
from shoal_engine.kernels.gluon_tiles import value_bases
from shoal_engine.kernels.interface import AttentionScale, HeadLayout
from tests.engine.kernels.compiled_elsewhere import compiled

# Compiled for Hopper in a process without the interpreter: both caches, and pages shorter than what a warp takes.
COMPILE = """
import json
import torch
import triton
from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.gpu import H200
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadInput, HeadLayout
from shoal_engine.kernels.triton_builds import foreseen, target_of

def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")

def walk():
    layout, i32, i64 = HeadLayout(16, 8, 128), torch.int32, torch.int64
    for rows, block_tokens, dtype in ((8, 16, torch.bfloat16), (200, 64, torch.float8_e4m3fn), (8, 8, torch.bfloat16)):
        batch = AttentionBatch(
            empty(rows + 1, dtype=i32), empty(rows, dtype=i32), empty(rows, 40, dtype=i32), empty(rows, dtype=i64),
            empty(rows, dtype=i64), rows, 1, 300, block_tokens,
        )
        heads = HeadInput(empty(400, 128, dtype=torch.float32), empty(128), empty(128))
        cache = empty(99, 2, 8, block_tokens, 128, dtype=dtype)
        CudaKernels().attend_new(empty(rows, layout.qkv_size), layout, heads, batch, cache, AttentionScale(0.1))

told = []
for build in foreseen(H200, walk):
    if build.kernel.__name__ != "_decode_rows":
        told.append({"name": build.kernel.__name__})
        continue
    source = build.kernel.ASTSource(build.kernel, build.signature, build.constants, build.attributes)
    ptx = triton.compile(source, target=target_of(H200), options=build.options).asm["ptx"]
    before = ptx.rpartition("griddepcontrol.wait")[0]  # the first one is for a plan that is being made
    told.append({
        "name": "_decode_rows", "early": before.count("ld.global.v4"), "late": ptx.count("mma.sync"),
        "bytes": 4 // build.constants[(build.kernel.arg_names.index("packed"),)],
    })
print(json.dumps(told))
"""


def test_the_first_tokens_are_on_their_way_before_the_wait() -> None:
    told = compiled(COMPILE)
    assert {build["name"] for build in told} == {"_decode_rows", "_plan_kernel"}  # nothing rotates beside it
    kernels = [build for build in told if build["name"] == "_decode_rows"]
    assert len(kernels) == 3
    for build in kernels:
        # 16 tokens of 128 keys and as many values to the 32 threads of a warp, 16 bytes at a time.
        assert build["early"] >= 2 * 16 * 128 * build["bytes"] // (32 * 16)
        # Each warp: 16 tokens by 128 dims in steps of 16, then 128 dims in tiles of 16 by 16 tokens.
        assert build["late"] == 8 + 8


@pytest.mark.parametrize("row_words", [16, 32, 64])
@pytest.mark.parametrize("warps", [1, 2, 4])
def test_every_word_is_one_threads_who_multiplies_it(row_words: int, warps: int) -> None:
    piece = min(4, row_words // 8)
    of_thread, of_lanes, of_warps = value_bases(row_words, piece, warps)
    assert len(of_lanes) == 5
    assert len(of_warps) == warps.bit_length() - 1
    held: dict[tuple[int, int, int], int] = {}
    for bits in itertools.product((0, 1), repeat=len(of_thread) + len(of_lanes) + len(of_warps)):
        place = [0, 0, 0]
        for bit, base in zip(bits, (*of_thread, *of_lanes, *of_warps), strict=True):
            place = [a ^ (b * bit) for a, b in zip(place, base, strict=True)]
        lane = sum(bit << i for i, bit in enumerate(bits[len(of_thread) : len(of_thread) + 5]))
        assert held.setdefault((place[0], place[1], place[2]), lane) == lane
        # Tensor cores want of lane 4 g + i the tokens 2i, 2i + 1, 2i + 8, 2i + 9, and one row in eight: those of g.
        assert (place[1] % 8) // 2 == lane % 4
        assert place[2] // piece % 8 == lane // 4
    assert len(held) == warps * 16 * row_words


def test_all_programs_of_a_step_fit_the_processors_at_once() -> None:
    for rows, cache_bytes, processors in itertools.product(range(1, 513), (1, 2), (132, 78)):
        tile = tile_for(rows, cache_bytes, processors)
        threads = 32 * tile.warps * -(-tile.programs // processors)
        assert threads * gluon_decode._REGISTERS[cache_bytes] <= 65536
        assert tile.programs >= 2 * processors


def test_who_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper, heads, plain = torch.device("meta"), HeadLayout(32, 8, 128), AttentionScale(0.1)
    monkeypatch.setattr(gluon_decode, "INTERPRETED", True)
    assert not serves(heads, plain, torch.bfloat16, hopper)
    monkeypatch.setattr(gluon_decode, "INTERPRETED", False)
    assert serves(heads, plain, torch.bfloat16, hopper)
    assert not serves(heads, AttentionScale(0.1, softcap=5.0), torch.bfloat16, hopper)
    assert not serves(heads, plain, torch.float32, hopper)
    assert not serves(HeadLayout(32, 2, 128), plain, torch.bfloat16, hopper)
    assert not serves(HeadLayout(32, 8, 96), plain, torch.bfloat16, hopper)
    assert not serves(heads, plain, torch.bfloat16, torch.device("cpu"))
