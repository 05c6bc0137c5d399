"""What the decodes of a step have in common: who should stand beside whom, and whether the GPU should look for it.

Reads block tables on the host. Blocks are shared from the first one on, so a common block has a common past.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEAST_PREFIX_TOKENS = 256
LEAST_TOKENS_SAVED = 4096  # of all decodes together: about what two more kernels a layer cost


def family(block_ids: Sequence[int], block_tokens: int) -> tuple[int, ...]:
    """Sorted by it, requests that share a prefix are neighbours: the blocks that end 256, 512, 1024, ... of its tokens."""
    found, depth_tokens = [], LEAST_PREFIX_TOKENS
    while depth_tokens <= len(block_ids) * block_tokens:
        found.append(block_ids[-(-depth_tokens // block_tokens) - 1])
        depth_tokens *= 2
    return tuple(found)


def neighbours_share(
    tables: NDArray[np.int32], context_lens: NDArray[np.int32], num_decodes: int, block_tokens: int
) -> bool:
    """tables [R, blocks], context_lens [R], decodes first: do enough of them begin as the one before them does?

    Looks at the block that ends 256 tokens, that at 512, and so on.
    """
    tables, context_lens = tables[:num_decodes], context_lens[:num_decodes]
    depth_tokens, counted_tokens, saved_tokens = LEAST_PREFIX_TOKENS, 0, 0
    while depth_tokens <= tables.shape[1] * block_tokens:
        blocks = -(-depth_tokens // block_tokens)
        block, there = tables[:, blocks - 1], context_lens >= blocks * block_tokens
        pairs = int(np.count_nonzero((block[1:] == block[:-1]) & there[1:] & there[:-1]))
        if pairs == 0:
            return False
        saved_tokens += pairs * (blocks * block_tokens - counted_tokens)
        if saved_tokens >= LEAST_TOKENS_SAVED:
            return True
        depth_tokens, counted_tokens = 2 * depth_tokens, blocks * block_tokens
    return False
