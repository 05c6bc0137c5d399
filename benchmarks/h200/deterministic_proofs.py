"""Kernel by kernel on a GPU: is a row's result the same to the last bit, whatever stands beside it?

Compares bits with bits: that the results are right is `kernels.py`'s to check and the tests'.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout
from shoal_engine.kernels.invariant import InvariantKernels
from shoal_engine.kernels.triton_invariant import TILES, invariant_linear
from shoal_engine.kernels.triton_prefill import PrefillTiling

SHAPES = [
    (4096, 1024),
    (1024, 3072),
    (6144, 4096),
    (4096, 14336),
    (1000, 1000),
]  # N, K; the last fits no tile
ROWS = 2048
PIECES = [(0, 1), (1, 1), (63, 2), (5, 8), (100, 16), (7, 17), (0, 64), (511, 100), (256, 129), (1000, 700)]
OTHERS = 255  # requests in its company
LENGTH = 1100  # tokens of the request that is watched
ROTATED = 3000  # enough for another tiling, were there one
BLOCK_TOKENS = 16
LAYOUTS = [HeadLayout(16, 8, 128), HeadLayout(32, 8, 128), HeadLayout(4, 1, 256)]


def operands(n: int, k: int, rows: int) -> tuple[Tensor, Tensor]:
    x, weight = torch.randn(rows, k, device="cuda"), torch.randn(n, k, device="cuda")
    return x.bfloat16(), (weight * k**-0.5).bfloat16()


def products() -> bool:
    """Every tile against the first one's, on all rows and on pieces of them. Also says what cuBLAS does."""
    good = True
    for n, k in SHAPES:
        x, weight = operands(n, k, ROWS)
        whole = invariant_linear(x, weight, tile=TILES[0])
        right = (whole.float() - x.float() @ weight.float().T).norm() / whole.float().norm()
        verdicts = []
        for tile in (*TILES, None):
            same = all(
                torch.equal(invariant_linear(x[at : at + count], weight, tile=tile), whole[at : at + count])
                for at, count in [*PIECES, (0, ROWS)]
            )
            name = "chosen" if tile is None else f"{tile.block_m}x{tile.block_n}"
            verdicts.append(f"{name} {'same' if same else 'DIFFERS'}")
            good &= same
        library = functional.linear(x, weight)
        differ = [
            count
            for at, count in PIECES
            if not torch.equal(functional.linear(x[at : at + count], weight), library[at : at + count])
        ]
        print(
            f"product {n}x{k} error {float(right):.1e}: {', '.join(verdicts)}; cuBLAS differs at {differ} rows",
            flush=True,
        )
        good &= float(right) < 5e-3
    return good


def batch_of(queries: Sequence[int], contexts: Sequence[int], tables: Tensor) -> AttentionBatch:
    positions = torch.cat([torch.arange(c - q, c) for q, c in zip(queries, contexts, strict=True)])
    return AttentionBatch(
        query_start=torch.tensor([0, *queries]).cumsum(0).int().cuda(),
        context_lens=torch.tensor(contexts, dtype=torch.int32).cuda(),
        tables=tables,
        slots=positions.cuda(),
        positions=positions.cuda(),
        num_decodes=next((i for i, q in enumerate(queries) if q > 1), len(queries)),
        max_query_len=max(queries),
        max_context_len=max(contexts),
        block_tokens=BLOCK_TOKENS,
    )


def attention(tiling: PrefillTiling | None = None) -> bool:
    """One request of LENGTH tokens: whole, in chunks, token by token, alone and among 255 others."""
    good = True
    for layout in LAYOUTS:
        pages = -(-LENGTH // BLOCK_TOKENS)
        tables = torch.randperm((OTHERS + 1) * pages, device="cuda").int().view(-1, pages)
        cache = torch.randn(
            (OTHERS + 1) * pages, 2, layout.num_kv_heads, BLOCK_TOKENS, layout.head_dim, device="cuda"
        ).bfloat16()
        q = torch.randn(LENGTH, layout.num_heads, layout.head_dim, device="cuda").bfloat16()
        for window in (None, 300):
            wrong = _other_bits(
                layout, AttentionScale(layout.head_dim**-0.5, window), q, cache, tables, tiling
            )
            good &= not wrong
            verdict = f"DIFFERS {', '.join(wrong)}" if wrong else "same"
            heads = f"{layout.num_heads}/{layout.num_kv_heads}x{layout.head_dim}"
            print(f"attention {heads} window {window}: {verdict}", flush=True)
    return good


def _other_bits(
    layout: HeadLayout,
    scale: AttentionScale,
    q: Tensor,
    cache: Tensor,
    tables: Tensor,
    tiling: PrefillTiling | None,
) -> list[str]:
    """The names of the ways that gave other bits than the whole prompt at once."""
    kernels = InvariantKernels(tiling)

    def attend(rows: Tensor, queries: Sequence[int], contexts: Sequence[int]) -> Tensor:
        return kernels.attend(rows, layout, batch_of(queries, contexts, tables[: len(queries)]), cache, scale)

    whole = attend(q, [LENGTH], [LENGTH])
    wrong = []
    for size in (1, 7, 16, 64, 512):
        starts = range(0, LENGTH, size) if size > 1 else range(0, LENGTH, 3)
        pieces = [(start, min(start + size, LENGTH)) for start in starts]
        if any(not torch.equal(attend(q[a:b], [b - a], [b]), whole[a:b]) for a, b in pieces):
            wrong.append(f"chunks of {size}")
    others = torch.randn(OTHERS, *q.shape[1:], device="cuda").bfloat16()
    lengths = torch.randint(1, LENGTH, (OTHERS,)).tolist()
    for end in (1, 63, 64, 65, LENGTH // 2, LENGTH):
        rows = torch.cat((q[end - 1 : end], others))
        if not torch.equal(attend(rows, [1, *[1] * OTHERS], [end, *lengths])[0], whole[end - 1]):
            wrong.append(f"decode {end} among others")
    first, last = LENGTH // 2, LENGTH - 9
    rows = torch.cat((q[first:last], others))
    if not torch.equal(
        attend(rows, [last - first, *[1] * OTHERS], [last, *lengths])[: last - first], whole[first:last]
    ):
        wrong.append("a chunk beside decodes")
    return wrong


def rotation() -> bool:
    """Heads of rows in a step of many against the same rows in steps of few, with head norms: queries and pages."""
    good, kernels = True, InvariantKernels()
    for layout in (HeadLayout(16, 8, 128), HeadLayout(32, 8, 128), HeadLayout(14, 2, 64)):
        qkv = torch.randn(ROTATED, layout.qkv_size, device="cuda").bfloat16()
        q_norm, k_norm = (torch.randn(layout.head_dim, device="cuda").bfloat16() for _ in range(2))
        rope = torch.randn(ROTATED, layout.head_dim, device="cuda")
        tables = torch.arange(ROTATED // BLOCK_TOKENS + 1, dtype=torch.int32, device="cuda")[None, :]
        shape = (tables.shape[1], 2, layout.num_kv_heads, BLOCK_TOKENS, layout.head_dim)
        whole, parts = (torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        batch = batch_of([ROTATED], [ROTATED], tables)
        q = kernels.rotate_and_store(qkv, layout, rope, batch, whole, q_norm, k_norm)
        same = True
        for start in range(0, ROTATED, 500):
            end = min(start + 500, ROTATED)
            part = batch_of([end - start], [end], tables)
            rows = kernels.rotate_and_store(qkv[start:end], layout, rope, part, parts, q_norm, k_norm)
            same &= torch.equal(rows, q[start:end])
        same &= torch.equal(whole, parts)
        good &= same
        print(f"rotation {layout}: {'same' if same else 'DIFFERS'}", flush=True)
    return good


def rows_alone() -> bool:
    """Norms and SiLU of one row, alone and among others."""
    kernels, good = InvariantKernels(), True
    for width in (1024, 4096):
        x, weight = (
            torch.randn(300, width, device="cuda").bfloat16(),
            torch.rand(width, device="cuda").bfloat16(),
        )
        for row in (0, 17, 299):
            one = x[row : row + 1].clone()
            good &= torch.equal(
                kernels.rms_norm(one, weight, 1e-6)[0], kernels.rms_norm(x, weight, 1e-6)[row]
            )
            good &= torch.equal(kernels.silu_mul(one)[0], kernels.silu_mul(x)[row])
            whole, alone = x.flip(0).clone(), x.flip(0)[row : row + 1].clone()
            added = kernels.add_rms_norm(x, whole, weight, 1e-6)[row]
            good &= torch.equal(kernels.add_rms_norm(one, alone, weight, 1e-6)[0], added)
            good &= torch.equal(alone[0], whole[row])
    print(f"norms and SiLU: {'same' if good else 'DIFFERS'}", flush=True)
    return good
