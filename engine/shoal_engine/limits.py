"""Sizes the scheduler keeps to, and the pure rules that follow from them. Knows no options and no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal_engine.messages import StepCost

MIN_GUARDED_TOKENS = 64  # prefill goes on, slowly, even when decoding alone takes longer than the target
UNLIMITED = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Names that vLLM also has mean the same. None is no limit unless said otherwise. Raises ValueError."""

    max_model_len: int  # prompt and output tokens of one request
    max_num_seqs: int = 256  # requests in one step
    max_num_batched_tokens: int = 2048  # tokens in one step
    block_tokens: int = 16
    max_num_queued_reqs: int | None = 1024  # waiting requests beyond the free seats
    max_num_queued_tokens: int | None = None  # tokens of all waiting requests
    long_prefill_token_threshold: int | None = None  # of one request in one step; None adapts, 0 = no limit
    min_shared_chunk: int = 512  # tokens of one request in one step, at least, when prompts share the budget
    sliding_window: int | None = None  # tokens a query sees, itself included, when that holds for every layer
    watermark: float = 0.0  # share of the blocks kept free when admitting beside running requests
    ageing_steps: int = 512  # steps of waiting that outweigh one level of priority
    target_step_s: float | None = None  # prefill beside decodes is cut to what fits a step of this length

    def __post_init__(self) -> None:
        for field in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "block_tokens",
            "ageing_steps",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1 or None, got {self.sliding_window}")
        if not 0.0 <= self.watermark < 1.0:
            raise ValueError(f"watermark must be in [0, 1), got {self.watermark}")

    def windowed_chunk_tokens(self, capacity_blocks: int) -> int:
        """Most tokens of one request in a step, such that under a sliding window it holds half the cache at most.

        A chunk of n tokens reads and writes window - 1 + n tokens, which may start inside a block. Raises
        ValueError if the cache has no room for the window and one block more.
        """
        if self.sliding_window is None:
            return self.max_num_batched_tokens
        seen_tokens = self.sliding_window - 1
        least_blocks = -(-seen_tokens // self.block_tokens) + 2
        if least_blocks > capacity_blocks:
            raise ValueError(
                f"a sliding window of {self.sliding_window} tokens needs {least_blocks} blocks, the cache has "
                f"{capacity_blocks}; give it more memory"
            )
        room_blocks = max(least_blocks, capacity_blocks // 2)
        return min(self.max_num_batched_tokens, (room_blocks - 1) * self.block_tokens - seen_tokens)

    def max_chunk_tokens(self, budget: int, remaining: Sequence[int]) -> int:
        """Most tokens of one prompt in a step with `budget` tokens, for requests that have `remaining` tokens to go.

        Sharing the budget keeps a long prompt from holding up short ones behind it. Where a share completes nobody's
        prompt it would only make all of them late: then they are computed one after another.
        """
        threshold = self.long_prefill_token_threshold
        if threshold is not None:
            return threshold or UNLIMITED
        if len(remaining) <= 1:
            return UNLIMITED
        share = max(self.min_shared_chunk, budget // len(remaining))
        return share if min(remaining) <= share else UNLIMITED

    def guarded_budget(self, budget: int, num_decodes: int, cost: StepCost | None) -> int:
        """What of `budget` prompts may take beside decodes, for the step to end within `target_step_s`."""
        if self.target_step_s is None or cost is None or not cost.prefill_token_s:
            return budget
        left_s = self.target_step_s - cost.base_s - cost.sequence_s * num_decodes
        return min(budget, max(MIN_GUARDED_TOKENS, int(left_s / cost.prefill_token_s)))
