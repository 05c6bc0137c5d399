"""What the steps teach: how long they take, and how fast the queue drains. Knows no clock."""

from __future__ import annotations

from shoal_engine.step_cost import StepCostFit

DECAY = 0.9  # weight of the past at each observation: about the last ten count


class Throughput:
    """Tokens per second, following the load."""

    __slots__ = ("_seconds", "_tokens")

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """Long steps weigh more than short ones: it is a ratio of sums, not a mean of ratios."""
        self._tokens = DECAY * self._tokens + tokens
        self._seconds = DECAY * self._seconds + seconds

    @property
    def tokens_per_s(self) -> float | None:
        """None until something was measured."""
        return self._tokens / self._seconds if self._tokens > 0 and self._seconds > 0 else None


class StepTimes:
    """How long the settled steps took, and what follows."""

    __slots__ = ("_settled_s", "drain", "last_step_s", "last_step_tokens", "step_cost")

    def __init__(self) -> None:
        self.step_cost = StepCostFit()
        self.drain = Throughput()  # of steps that had prompts to compute, whether or not they could
        self.last_step_s = 0.0
        self.last_step_tokens = 0
        self._settled_s = float("-inf")

    def observe(
        self, planned_s: float, now_s: float, tokens: int, prefill_tokens: int, others_wait: bool
    ) -> None:
        """A step ran until now from when it was planned, or later, from the end of the one before."""
        seconds = now_s - max(planned_s, self._settled_s)
        self.step_cost.observe(prefill_tokens, tokens - prefill_tokens, seconds)
        if prefill_tokens or others_wait:
            self.drain.observe(prefill_tokens, seconds)
        self._settled_s = now_s
        self.last_step_s, self.last_step_tokens = seconds, tokens
