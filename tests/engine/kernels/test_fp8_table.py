"""The table of float8 products names only what can run."""

from __future__ import annotations

import pytest

from shoal_engine.kernels import fp8_table
from shoal_engine.kernels.fp8_table import Fp8Way, choose_fp8, wide_tile
from shoal_engine.kernels.gemm_table import MAX_ROWS, GemmChoice, Method

SHAPES = [*fp8_table._CHANNELS, *fp8_table._IN_BLOCKS, (6144, 4096), (1024, 2048), (77, 40)]
ROWS = sorted({*fp8_table.ROW_BUCKETS, 3, 33, 100, 257, 1025, 8192})


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_every_choice_can_run(n: int, k: int, in_blocks: bool) -> None:
    for rows in ROWS:
        choice = choose_fp8(rows, n, k, in_blocks)
        assert (choice.tile is not None) == (choice.way in (Fp8Way.WIDE, Fp8Way.TILE))
        assert choice.way in ((Fp8Way.WIDE, Fp8Way.BLOCKS) if in_blocks else set(Fp8Way) - {Fp8Way.BLOCKS})
        if choice.tile is not None:
            assert runs(choice.tile, rows, in_blocks), (rows, choice)
            assert choice.way is Fp8Way.WIDE or choice.tile.method is Method.DOT


@pytest.mark.parametrize("in_blocks", [False, True])
def test_few_rows_of_any_shape_have_a_kernel(in_blocks: bool) -> None:
    for n, k in SHAPES:
        for rows in range(1, MAX_ROWS + 1):
            assert runs(wide_tile(rows, n, k, in_blocks), rows, in_blocks)


def runs(choice: GemmChoice, rows: int, in_blocks: bool) -> bool:
    if choice.method is Method.GEMV:
        return rows == 1 and not in_blocks
    fits = choice.method is Method.DOT and rows <= MAX_ROWS
    return fits and (not in_blocks or (128 % choice.block_n == 0 and 128 % choice.block_k == 0))
