"""What ends a recorded step of decodes: logits, and a token for each row, drawn as a request of plain temperature asks.

So such a step costs the host one copy and one launch. Rows that ask for more (edits, penalties, truncation, logprobs) are
`cuda_sampler`'s, which shares the places of the results.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shoal_engine.kernels.triton_sampling import RowParameters, SamplingSpace, sample


class StepTail:
    def __init__(
        self, logits: Callable[[Tensor], Tensor], inputs: dict[str, Tensor], space: SamplingSpace
    ) -> None:
        """logits: hidden [R, H] -> [R, V]; inputs: a tensor for each of `plain_draws.FIELDS`."""
        self._logits = logits
        self._space = space
        most, device = len(space.token_ids), space.token_ids.device
        self._rows = RowParameters(
            temperature=inputs["temperature"],
            min_p=torch.zeros(most, dtype=torch.float32, device=device),
            top_k=torch.full((most,), space.vocab_size, dtype=torch.int32, device=device),
            top_p=torch.full((most,), float("inf"), dtype=torch.float64, device=device),
            keys=inputs["keys"],
            positions=inputs["drawn"],
        )

    def __call__(self, hidden: Tensor) -> None:
        """hidden [R, H]: leaves row r's token and whether it is one in row r of the space."""
        sample(self._logits(hidden), self._rows, self._space, truncated=False)
