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

    Looks at one block of each. Blocks are shared from the first one on, so a common block has a common past.
    """
    column = LEAST_PREFIX_TOKENS // block_tokens - 1 if block_tokens < LEAST_PREFIX_TOKENS else 0
    if num_decodes < 2 or column >= tables.shape[1]:
        return False
    there = context_lens[:num_decodes] >= (column + 1) * block_tokens
    block = tables[:num_decodes, column]
    pairs = int(np.count_nonzero((block[1:] == block[:-1]) & there[1:] & there[:-1]))
    return pairs * (column + 1) * block_tokens >= LEAST_TOKENS_SAVED
