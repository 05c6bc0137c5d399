"""The last choices of replicas, kept to be looked at on /debug: what each replica was believed to cost, and what came of it.

Recording keeps references only; costs are computed again and text is made when somebody looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shoal_router.endpoints import Endpoint
from shoal_router.policy import Candidate, Prices, Weights, costs_of
from shoal_router.usage import Usage

KEPT: Final = 200


class Decision:
    """One choice. Frozen as far as it was known then; what came of it is filled in later."""

    __slots__ = (
        "at",
        "candidates",
        "chosen",
        "endpoints",
        "mean_in_flight",
        "model",
        "outcome",
        "prices",
        "request_id",
        "status",
        "tokens",
        "usage",
        "weights",
    )

    def __init__(
        self,
        at: float,
        model: str,
        tokens: float,
        endpoints: Sequence[Endpoint],
        candidates: Sequence[Candidate],
        weights: Weights,
        prices: Prices,
        chosen: int,
        mean_in_flight: float | None,
    ) -> None:
        self.at: Final = at  # seconds of the epoch
        self.model: Final = model
        self.tokens: Final = tokens  # of the prompt, by its bytes
        self.endpoints: Final = endpoints
        self.candidates: Final = candidates
        self.weights: Final = weights
        self.prices: Final = prices
        self.chosen: Final = chosen
        self.mean_in_flight: Final = (
            mean_in_flight  # of all replicas, when the candidates are only some of them
        )
        self.request_id = b""
        self.status = 0  # of the replica's reply; 0 while there is none
        self.outcome = ""  # "done", or why the attempt came to nothing; empty while it lasts
        self.usage: Usage | None = None  # as the engine counted

    @property
    def costs(self) -> list[float]:
        """What each candidate was believed to cost, in prompt tokens."""
        return costs_of(self.tokens, self.candidates, self.weights, self.prices, self.mean_in_flight)
