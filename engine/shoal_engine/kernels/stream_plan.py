"""How a product's work is cut into equal runs of steps for a fixed number of programs. Arithmetic; launches nothing.

A step multiplies one tile of rows by one tile of columns over block_k of K. Steps are numbered tile by tile, and each
program takes the next `budget` of them, so that a tile may be shared by programs with successive numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal_engine.kernels.gemm_table import GemmChoice, Method

SUM_ROWS = 16  # a shared tile is summed in pieces of so many rows, which its programs take in turn


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """tiles_m and tiles_n cover y, each in `steps` along K; `most_parts` programs at most share a tile."""

    tiles_m: int
    tiles_n: int
    steps: int
    budget: int
    programs: int
    most_parts: int

    @property
    def total(self) -> int:
        return self.tiles_m * self.tiles_n * self.steps


def plan_stream(rows: int, columns: int, inner: int, choice: GemmChoice, processors: int) -> StreamPlan:
    """For y [rows, columns] of sums over `inner` elements, on a card that runs `processors` programs at once.

    choice.split_k: 1 leaves tiles whole, more cut every tile into so many parts, 0 gives each of the card's processors the
    same number of steps wherever a tile ends. Parts wait for each other, so all of them must run at once: a split that
    is too fine for the card becomes 0. Of whole tiles WARPS gives a program several, if there are more than processors.
    """
    tiles_m, tiles_n = -(-rows // choice.block_m), -(-columns // choice.block_n)
    tiles, steps = tiles_m * tiles_n, -(-inner // choice.block_k)
    budget = -(-steps // max(1, choice.split_k))
    if choice.split_k == 0 or (budget < steps and tiles * -(-steps // budget) > processors):
        budget = -(-tiles * steps // processors)
    elif budget < steps and steps % budget:
        budget = _next_divisor(steps, budget)
    elif choice.method is Method.WARPS:
        budget *= -(-tiles // processors)
    return StreamPlan(
        tiles_m, tiles_n, steps, budget, -(-tiles * steps // budget), _most_parts(steps, budget)
    )


def _next_divisor(steps: int, budget: int) -> int:
    """The least divisor of `steps` from `budget` on: parts of a tile then never reach into the next."""
    return next(one for one in range(budget, steps + 1) if steps % one == 0)


def _most_parts(steps: int, budget: int) -> int:
    """Programs that can share a tile, whose first step may be the last of one budget. Up to a power of two: the kernel is
    compiled for it."""
    if budget % steps == 0:
        return 1
    most = steps // budget if steps % budget == 0 else (steps - 2) // budget + 2
    return 1 << (most - 1).bit_length()
