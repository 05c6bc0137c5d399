"""Whether the decodes of a step have enough in common that the GPU should look for it. Reads block tables on the host."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST_PREFIX_TOKENS = 256
LEAST_TOKENS_SAVED = 4096  # of all decodes together: about what two more kernels a layer cost


def neighbours_share(
    tables: NDArray[np.int32], context_lens: NDArray[np.int32], num_decodes: int, block_tokens: int
) -> bool:
    """tables [R, blocks], context_lens [R], decodes first: do enough of them begin as the one before them does?

    Looks at the block that ends 256 tokens, that at 512, and so on. Blocks are shared from the first one on, so a common
    block has a common past.
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
