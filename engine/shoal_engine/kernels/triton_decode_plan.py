"""Who reads what in decode attention: the visible tokens of all requests, cut into tiles and dealt in equal shares.

All tiles of a step stand in one line, request after request, and worker w takes tiles [w*share, (w+1)*share) of it. The
line is laid out on the device by one program, since only the device knows the lengths inside a CUDA graph; the number of
workers is fixed. A request without tokens (a padding row) has one tile, all of it hidden, so that its output is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal_engine.kernels.interface import AttentionBatch, HeadLayout
from shoal_engine.kernels.triton_jit import jit, jit_once
from shoal_engine.kernels.triton_prefix import SharedPrefix

REQUESTS_PER_PASS = 1024
COMPARISONS_PER_PASS = 8192  # requests x workers that are compared at once: 64 registers of each thread


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """line [2 + workers + R + 1] int32: share; number of tiles; first request of every worker; first tile of every request.

    max_pieces: a request is never cut into more pieces than this, so that merging them stays cheap.
    shared: prefixes whose tiles do not stand in the line, because they are read once for several requests.
    """

    line: Tensor
    workers: int
    tile_tokens: int
    max_pieces: int
    shared: SharedPrefix | None = None


@jit_once("context_lens", "prefix_steps", "num_requests", "window")
def _plan_kernel(
    context_lens: tl.tensor,
    prefix_steps: tl.tensor,
    line: tl.tensor,
    num_requests: tl.tensor,
    window: tl.tensor,
    has_prefix: tl.constexpr,
    step_tiles: tl.constexpr,
    workers: tl.constexpr,
    tile_tokens: tl.constexpr,
    max_pieces: tl.constexpr,
    request_block: tl.constexpr,
    compare_block: tl.constexpr,
    worker_block: tl.constexpr,
) -> None:
    starts = line + 2 + workers
    total = tl.full((), 0, tl.int32)
    longest = tl.full((), 1, tl.int32)
    tl.store(starts, 0)
    for begin in range(0, num_requests, request_block):
        request = begin + tl.arange(0, request_block)
        length = tl.load(context_lens + request, mask=request < num_requests, other=0)
        hidden = tl.maximum(length - window, 0) // tile_tokens
        if has_prefix:
            hidden = tl.load(prefix_steps + request, mask=request < num_requests, other=0) * step_tiles
        tiles = tl.maximum((length + tile_tokens - 1) // tile_tokens - hidden, 1)
        tiles = tl.where(request < num_requests, tiles, 0)
        tl.store(starts + 1 + request, total + tl.cumsum(tiles, 0), mask=request < num_requests)
        total += tl.sum(tiles, 0)
        longest = tl.maximum(longest, tl.max(tiles, 0))
    share = tl.maximum((total + workers - 1) // workers, (longest + max_pieces - 2) // (max_pieces - 1))
    tl.store(line, share)
    tl.store(line + 1, total)
    tl.debug_barrier()  # the ends just written are read by other threads below
    worker = tl.arange(0, worker_block)
    first = tl.zeros((worker_block,), tl.int32)
    for begin in range(0, num_requests, compare_block):
        request = begin + tl.arange(0, compare_block)
        end = tl.load(starts + 1 + request, mask=request < num_requests, other=2147483647)
        first += tl.sum((end[:, None] <= worker[None, :] * share).to(tl.int32), axis=0)
    tl.store(line + 2 + worker, first, mask=worker < workers)


@jit
def worker_share(line, worker, workers, num_requests):  # type: ignore[no-untyped-def]
    """Tiles of a share; the worker's own first tile and the one after its last; its first request and the one after its last.

    Also called by Gluon kernels, which take a Triton function of single numbers.
    """
    share, first_request = tl.load(line), tl.load(line + 2 + worker)
    tile = worker * share
    last_tile = tl.minimum(tile + share, tl.load(line + 1))
    # The worker after begins where this one ends, perhaps inside the same request.
    bound = tl.load(line + 3 + worker, mask=worker + 1 < workers, other=0)
    bound += (tl.load(line + 2 + workers + bound) < last_tile).to(tl.int32)
    return share, tile, last_tile, first_request, tl.where(worker + 1 < workers, bound, num_requests)


@jit
def worker_span(starts, context_lens, request, tile, last_tile, window, tile_tokens: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a worker that stands at `tile`: where its part of `request` ends, and which cached tokens that part is.

    from_token may lie before first_visible, inside the same tile. Past the worker's last tile there are no tokens.
    """
    live = tile < last_tile
    start = tl.load(starts + request, mask=live, other=0)
    end = tl.load(starts + request + 1, mask=live, other=0)
    length = tl.load(context_lens + request, mask=live, other=0)
    stop = tl.minimum(last_tile, end)
    first_visible = tl.maximum(length - window, 0)
    from_token = (first_visible // tile_tokens + tile - start) * tile_tokens
    to_token = tl.minimum(
        from_token + (stop - tile) * tile_tokens, length - 1
    )  # the new one is not cached yet
    return start, end, stop, length, first_visible, from_token, to_token


class Tile(Protocol):
    """How a kernel cuts decodes: `DecodeTiling`, `AttentionTile`."""

    @property
    def tile_tokens(self) -> int: ...

    def workers(self, layout: HeadLayout) -> int: ...

    def max_pieces(self, layout: HeadLayout) -> int: ...


def plan_step(
    batch: AttentionBatch,
    layout: HeadLayout,
    window: int | None,
    tile: Tile,
    shared: SharedPrefix | None = None,
) -> DecodePlan:
    """The plan of all layers of one step that share `layout` and `window`."""
    return plan_decodes(
        batch.context_lens, batch.num_decodes, window, tile.workers(layout), tile.tile_tokens, tile.max_pieces(layout),
        shared,
    )  # fmt: skip


def plan_decodes(
    context_lens: Tensor,
    num_decodes: int,
    window: int | None,
    workers: int,
    tile_tokens: int,
    max_pieces: int,
    shared: SharedPrefix | None = None,
) -> DecodePlan:
    """context_lens [R >= num_decodes] int32, on the device; all later values stay there."""
    line = torch.empty(2 + workers + num_decodes + 1, dtype=torch.int32, device=context_lens.device)
    worker_block = triton.next_power_of_2(workers)
    _plan_kernel[(1,)](
        context_lens, shared.steps if shared else context_lens, line, num_decodes, window or 2**30,
        has_prefix=shared is not None, step_tiles=shared.step_tokens // tile_tokens if shared else 1,
        workers=workers, tile_tokens=tile_tokens, max_pieces=max_pieces,
        request_block=REQUESTS_PER_PASS, worker_block=worker_block,
        compare_block=max(1, COMPARISONS_PER_PASS // worker_block), num_warps=4,
    )  # fmt: skip
    return DecodePlan(line, workers, tile_tokens, max_pieces, shared)
