"""Which steps are worth recording as a CUDA graph, which of them first, and which serves for another. Records nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shoal_engine.config import ModelConfig

PROMPT_REQUESTS = 32  # in a recorded step that computes prompts
PROMPT_TOKENS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
# Of steps that are recorded before the engine is ready, beside the largest of each kind; the others follow when it has
# nothing else to do.
FIRST_DECODES, FIRST_PROMPTS = frozenset((1, 8, 32)), frozenset((128, 512))
# Steps of a shape in whose place a larger one is computed, of at most so many times its tokens: on a small model they take
# the GPU about as much longer as recording takes the host.
STAND_INS, MOST_PADDING = 8, 4
# Launching the kernels of a step takes the host about this long; the GPU computes at about this rate.
MIN_PROMPT_TOKENS = 512  # a first token alone is worth the memory of a graph
LAUNCH_S = 0.006
FLOP_PER_S = 500e12


@dataclass(frozen=True, slots=True)
class Shape:
    """What sets recorded steps apart. num_decodes is `requests` or 0: prompts take decodes with them as prompts of one.

    shares_prefixes: decodes whose attention reads what neighbours have in common once.
    draws: decodes that end in a token for each, by `step_tail`.
    """

    tokens: int
    requests: int
    num_decodes: int
    shares_prefixes: bool = False
    draws: bool = False


def decode_rows(rows: int) -> int:
    """The batch size whose graph serves `rows` decodes: at most 12.5 % or 7 rows of padding."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    step = 8 if rows <= 256 else 32 if rows <= 512 else 64
    return -(-rows // step) * step


def max_prompt_tokens(config: ModelConfig) -> int:
    """Steps with prompts up to this size are shorter than their launches."""
    attention = 2 * config.hidden_size * (config.num_heads + config.num_kv_heads) * config.head_dim
    weights = config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
    return max(MIN_PROMPT_TOKENS, int(LAUNCH_S * FLOP_PER_S / (2 * weights)))


def prompt_sizes(config: ModelConfig) -> list[int]:
    return [tokens for tokens in PROMPT_TOKENS if tokens <= max_prompt_tokens(config)]


def common_shapes(config: ModelConfig, max_rows: int) -> list[Shape]:
    """Those of prompts and of up to so many decodes, the largest first."""
    sizes = sorted({decode_rows(rows) for rows in range(1, max_rows + 1)})
    shapes = [Shape(tokens, PROMPT_REQUESTS, 0) for tokens in prompt_sizes(config)]
    shapes += [Shape(rows, rows, rows, draws=draws) for rows in sizes for draws in (True, False)]
    if max_rows > 1:  # few and many decodes that share a prefix have a kernel each
        shapes += [Shape(rows, rows, rows, True, True) for rows in {2, sizes[-1]}]
    return sorted(shapes, key=lambda each: -each.tokens)


def first_shapes(shapes: Sequence[Shape]) -> list[Shape]:
    """Those that are recorded before the engine is ready."""
    decodes = [shape for shape in shapes if shape.draws and not shape.shares_prefixes]
    prompts = [shape for shape in shapes if not shape.num_decodes]
    first = {max(kind, key=lambda shape: shape.tokens) for kind in (decodes, prompts) if kind}
    first |= {shape for shape in decodes if shape.tokens in FIRST_DECODES}
    first |= {shape for shape in prompts if shape.tokens in FIRST_PROMPTS}
    return [shape for shape in shapes if shape in first]


def stand_in(shape: Shape, recorded: Collection[Shape]) -> Shape | None:
    """The smallest of `recorded` that computes what a step of `shape` does; None if none does that is not far larger."""
    kind = (shape.num_decodes > 0, shape.draws)
    larger = [
        other
        for other in recorded
        if (other.num_decodes > 0, other.draws) == kind
        and shape.tokens <= other.tokens <= MOST_PADDING * shape.tokens
        # To read what neighbours share once for each of them is slower, not wrong.
        and (shape.shares_prefixes or not other.shares_prefixes)
    ]
    return min(larger, key=lambda other: (other.tokens, not other.shares_prefixes), default=None)


class StandIns:
    """Which recorded steps serve in place of one that is not, for a while: a shape that is rare is never recorded."""

    def __init__(self) -> None:
        self._taken: Counter[Shape] = Counter()

    def next_for(self, shape: Shape, recorded: Collection[Shape]) -> Shape | None:
        """None: record it now. Asked after that, it begins to count anew."""
        other = stand_in(shape, recorded)
        if other is None or self._taken[shape] == STAND_INS:
            self._taken[shape] = 0
            return None
        self._taken[shape] += 1
        return other
