"""What a request in flight costs, per model, in prompt tokens: derived from the step times that engines report.

policy.py says what the prices are for; this file only remembers them.
"""

from __future__ import annotations

from typing import Final

from shoal_api.engine_state_pb2 import StepCost
from shoal_router.endpoints import Endpoint
from shoal_router.policy import DEFAULT_PRICES, Prices

_LEARNING_RATE: Final = 0.1


class LearnedPrices:
    """A running mean over all replicas of a model: one replica's measuring error must not push requests to others."""

    def __init__(self) -> None:
        self._prices: dict[str, Prices] = {}

    def of(self, model: str) -> Prices:
        return self._prices.get(model, DEFAULT_PRICES)

    def learn(self, endpoint: Endpoint, cost: StepCost) -> None:
        """A replica has reported its step times."""
        report = endpoint.report
        told = Prices.derived(cost.base_s, cost.prefill_token_s, cost.sequence_s, report.max_num_seqs)
        if told is None:
            return
        for model, _ in report.models:
            known = self._prices.get(model)
            self._prices[model] = told if known is None else known.moved(told, _LEARNING_RATE)
