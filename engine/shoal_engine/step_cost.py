"""What a step costs, learnt from the steps: seconds = base + prompt tokens * a + decoding sequences * b. Knows no clock.

Weighted least squares, forgetting exponentially. Errors count relative to the step, so that a decode of 2 ms means as
much as a prefill of 500 ms, and large ones are cut (Huber): a step that was held up teaches little. Steps with prompt
tokens and steps without forget apart, because an hour of decoding says nothing new about prompts.
"""

from __future__ import annotations

from shoal_engine.messages import StepCost

KEEP = (
    1.0 - 1.0 / 512
)  # weight of what is known at each observation of its kind: about the last 512 steps count
FIT_EVERY = 16  # steps
SWEEPS = 20
MIN_STEPS = 32
MIN_PREFILL_STEPS = 8
CUT = 3.0  # errors above this many times their mean count as if they were that large
LEAST_ERROR = 0.02  # relative; below it nothing is an outlier
SHORTEST_S = 1e-6


class StepCostFit:
    """`cost` is None until enough steps of both kinds were seen; its parts are never negative."""

    __slots__ = ("_decode", "_error", "_parts", "_prefill", "_prefill_steps", "_steps", "cost")

    def __init__(self) -> None:
        self.cost: StepCost | None = None
        self._parts = [0.0, 0.0, 0.0]
        self._error = LEAST_ERROR  # mean relative error
        self._decode = [0.0] * 9  # sums of 1 p d, pp pd dd, and of t pt dt
        self._prefill = [0.0] * 9
        self._steps = 0
        self._prefill_steps = 0

    def observe(self, prefill_tokens: int, num_decodes: int, seconds: float) -> None:
        """A step has taken `seconds`."""
        if seconds <= 0.0 or not (prefill_tokens or num_decodes):
            return
        weight = self._weight(prefill_tokens, num_decodes, seconds)
        tokens, sequences = weight * prefill_tokens, weight * num_decodes
        sums = self._prefill if prefill_tokens else self._decode
        new = (
            weight,
            tokens,
            sequences,
            tokens * prefill_tokens,
            tokens * num_decodes,
            sequences * num_decodes,
        )
        for index, value in enumerate((*new, weight * seconds, tokens * seconds, sequences * seconds)):
            sums[index] = KEEP * sums[index] + value
        self._steps += 1
        self._prefill_steps += bool(prefill_tokens)
        if not self._steps % FIT_EVERY:
            self._fit()

    def _weight(self, prefill_tokens: int, num_decodes: int, seconds: float) -> float:
        if self.cost is None:
            return 1.0 / max(seconds, SHORTEST_S) ** 2
        base, token, sequence = self._parts
        expected = max(base + token * prefill_tokens + sequence * num_decodes, SHORTEST_S)
        error = abs(seconds - expected) / expected
        cut = CUT * max(self._error, LEAST_ERROR)
        self._error = KEEP * self._error + (1.0 - KEEP) * min(error, 2.0)
        return (1.0 if error <= cut else cut / error) / expected**2

    def _fit(self) -> None:
        """Minimise over one part after the other, from where they are: what the steps leave open stays as it was."""
        one, p, d, pp, pd, dd, t, pt, dt = (x + y for x, y in zip(self._decode, self._prefill, strict=True))
        base, token, sequence = self._parts
        for _ in range(SWEEPS):
            base = max(0.0, (t - p * token - d * sequence) / one)
            token = max(0.0, (pt - p * base - pd * sequence) / pp) if pp else 0.0
            sequence = max(0.0, (dt - d * base - pd * token) / dd) if dd else 0.0
        self._parts = [base, token, sequence]
        if self._steps >= MIN_STEPS and self._prefill_steps >= MIN_PREFILL_STEPS:
            self.cost = StepCost(base, token, sequence)
