"""The last choices of replicas, kept to be looked at on /debug: what each replica was believed to cost, and what came of it.

Recording keeps references only; costs are computed again and text is made when somebody looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from shoal_router.endpoints import Endpoint
from shoal_router.policy import Candidate, Prices, Weights, costs_of
from shoal_router.usage import Usage

KEPT: Final = 200


class Decision(msgspec.Struct, gc=False):
    """One choice. Frozen as far as it was known then; what came of it is filled in later."""

    at: float  # seconds of the epoch
    model: str
    tokens: float  # of the prompt, by its bytes
    endpoints: Sequence[Endpoint]
    candidates: Sequence[Candidate]
    weights: Weights
    prices: Prices
    chosen: int
    mean_in_flight: float | None  # of all replicas, when the candidates are only some of them
    request_id: bytes = b""
    status: int = 0  # of the replica's reply; 0 while there is none
    outcome: str = ""  # "done", or why the attempt came to nothing; empty while it lasts
    usage: Usage | None = None  # as the engine counted

    @property
    def costs(self) -> list[float]:
        """What each candidate was believed to cost, in prompt tokens."""
        return costs_of(self.tokens, self.candidates, self.weights, self.prices, self.mean_in_flight)
