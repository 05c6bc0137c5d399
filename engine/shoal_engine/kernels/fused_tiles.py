"""How the fused decode kernels cut their work: tile values, and which to use for a product. Launches nothing.

`fused_table.py` holds what was measured inside a whole step's graph: the best tile there is not the best tile alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from shoal_engine.kernels.fused_table import FLOAT8, TABLE
from shoal_engine.kernels.interface import HeadLayout


@dataclass(frozen=True, slots=True)
class GemvTile:
    """A program has `warps` warps with row_steps weight rows each; a step of K is `segments` 16-byte loads of a thread.

    early: the next kernel may start with this one, not after it.
    """

    row_steps: int = 1
    segments: int = 4
    warps: int = 4
    early: bool = True


@dataclass(frozen=True, slots=True)
class ProductTile:
    """block_n weight rows by block_k of K at a time; `parts` programs share a tile's K, the last adds their sums up.

    fold: warp groups that share block_k within a program (1: tensor cores of the whole program on one tile);
    head: tiles (1 or 2) that are loaded before the wait; stages: loads in flight in the loop over the rest.
    early: the next kernel may start with this one, not after its main loop.
    """

    block_n: int = 64
    block_k: int = 128
    parts: int = 1
    fold: int = 1
    warps: int = 4
    stages: int = 4
    head: int = 1
    early: bool = False


@dataclass(frozen=True, slots=True)
class NarrowTile:
    """Of `gluon_narrow`: block_n weight rows by all of K, which `warps` share, up to `head` chunks of it in flight.

    row_warps: so many times as many warps share the rows, and read the same x.
    """

    block_n: int = 16
    warps: int = 8
    head: int = 2
    early: bool = True
    row_warps: int = 1


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """programs: workers times key/value heads, about; early: as in the products. `gluon_decode` reads no more than warps.

    stages: tiles in flight to shared memory; 1: one in registers instead, loaded before the wait, which is what a worker
    with hardly more than one tile wants.
    """

    tile_tokens: int = 64
    warps: int = 4
    programs: int = 256
    early: bool = True
    stages: int = 1

    def workers(self, layout: HeadLayout) -> int:
        return max(1, self.programs // layout.num_kv_heads)

    def max_pieces(self, layout: HeadLayout) -> int:
        """More pieces mean more parallelism for a single long request, and a longer merge."""
        return max(32, min(128, 1 << (256 // layout.num_kv_heads - 1).bit_length()))


ROW_BLOCKS = (8, 16, 32, 64)  # rows of a product on tensor cores
MAX_ROWS = ROW_BLOCKS[-1]
_PROGRAMS = 264  # two for each processor of an H200
_NARROW_FIELDS = 5
_NARROW_K = 512  # numbers of two bytes that eight warps share evenly; of one byte twice as many
_NARROW_HEAD = 6  # chunks: with more in flight, registers run out
_NARROW_FLOAT8_HEAD = 3  # of twice as many numbers
# By row block, the most numbers of a weight that narrow tiles pay for: each of them reads all of x.
_NARROW_WEIGHTS = {8: 2**40, 16: 2**23, 32: 2**22}
_NARROW_FLOAT8 = {8: 2**40, 16: 2**40, 32: 2**23}


@functools.cache
def gemv_tile(n: int, k: int) -> GemvTile:
    """For one row and a weight [n, k] as it lies in memory."""
    tuned = TABLE.get((n, k, 1))
    if tuned is not None:
        return GemvTile(*tuned)  # type: ignore[arg-type]
    return GemvTile()


@functools.cache
def product_tile(n: int, k: int, rows: int, narrow: bool, float8: bool = False) -> ProductTile | NarrowTile:
    """For up to MAX_ROWS rows and a weight [n, k] as it lies in memory. narrow: whether `gluon_narrow` runs there."""
    table = FLOAT8 if narrow and float8 else TABLE
    tuned = table.get((n, k, row_block(rows)), ())
    if len(tuned) > _NARROW_FIELDS:
        return ProductTile(*tuned)  # type: ignore[arg-type]
    if narrow and tuned:
        return NarrowTile(*tuned)  # type: ignore[arg-type]
    most = (_NARROW_FLOAT8 if float8 else _NARROW_WEIGHTS).get(row_block(rows), 0)
    chunks, rest = divmod(k, 2 * _NARROW_K if float8 else _NARROW_K)
    if narrow and rest == 0 and n * k <= most:
        return _narrow_float8(n, chunks, rows) if float8 else _narrow(chunks, _NARROW_HEAD)
    block_k = 256 if k <= 4096 and n * k <= 2**23 else 128
    tiles, parts = -(-n // 64), 1
    while tiles * parts < _PROGRAMS // 2 and k // (block_k * parts * 2) >= 1:
        parts *= 2
    return ProductTile(64, block_k, parts, 1, 4, 4 if block_k == 128 else 2, 1, False)


def _narrow(chunks: int, most: int) -> NarrowTile:
    """chunks: of K, for each warp; most: that are in flight together."""
    return NarrowTile(head=chunks if chunks <= most else 2)


def _narrow_float8(n: int, chunks: int, rows: int) -> NarrowTile:
    """More than 8 rows of x are as many bytes as the weights of several tiles: higher tiles, where enough are left."""
    if rows > 8 and n >= 32 * _PROGRAMS // 4:
        # 16 warps have no registers for 32 rows.
        return NarrowTile(32, 16 if rows <= 16 and n <= 32 * _PROGRAMS // 2 else 8, 1)
    return _narrow(chunks, _NARROW_FLOAT8_HEAD)


def row_block(rows: int) -> int:
    return next(block for block in ROW_BLOCKS if rows <= block)


def attention_tile(layout: HeadLayout, rows: int) -> AttentionTile:
    """Programs that all fit the processors at once: two on each."""
    short = 64 if layout.head_dim <= 128 else 32
    return AttentionTile(short, 4, 256 if rows == 1 else 264)
