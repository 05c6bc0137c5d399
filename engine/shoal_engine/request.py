"""The mutable state of one generation while the engine has it. Decides nothing; knows no tensors."""

from __future__ import annotations

import enum

from shoal_engine.errors import EngineError
from shoal_engine.messages import Submit
from shoal_engine.sampling_params import SamplingParams

NO_TOKENS: frozenset[int] = frozenset()


class Status(enum.Enum):
    WAITING = "waiting"  # holds no blocks
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """Prompt and output tokens with how far they are computed; `num_computed_tokens` chases their number.

    A token that has been scheduled but not yet committed is pending: it exists on the device only. Block
    `block_ids[i]` holds the keys and values of tokens [i * block_tokens, (i + 1) * block_tokens); 0 stands
    for one that has fallen below the sliding window.
    """

    __slots__ = (
        "adapter",
        "adapter_digest",  # sha256 of the adapter's weights; without it an adapter's blocks are never shared
        "arrival",
        "block_hashes",  # of the full blocks of known tokens, chained; empty without prefix caching
        "block_ids",
        "cache_salt",
        "error",  # why it ended with finish_reason "error"
        "finish_reason",
        "id",
        "last_step",  # newest plan with a chunk of this request, 0 = none
        "max_total_tokens",  # prompt and output together; set by the scheduler
        "num_cached_tokens",  # prompt tokens served from the prefix cache; None until first admitted
        "num_computed_tokens",
        "num_dropped_blocks",  # leading entries of block_ids that fell below the window
        "num_failed_steps",  # steps that were rolled back for it; once failed, it reads proven blocks only
        "num_pending",
        "num_preemptions",
        "num_prompt_tokens",
        "num_published_blocks",  # leading blocks that are in the prefix cache or were tried
        "num_verified_blocks",  # leading blocks that have been part of a good row's context
        "order",  # lower is scheduled sooner and preempted later; set by the scheduler
        "params",
        "priority",
        "stale_step",  # results of plans up to this one no longer count
        "status",
        "stop_ids",  # tokens that end it; set by the scheduler
        "stop_reason",  # the stop token id that ended it, None for EOS
        "token_ids",
        "trusted_blocks",  # read before anybody had vouched for them, and what was computed from them
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        arrival: float,
        *,
        priority: int = 0,
        cache_salt: str = "",
        adapter: str = "",
        adapter_digest: bytes | None = None,
    ) -> None:
        self.id = request_id
        self.params = params
        self.priority = priority
        self.arrival = arrival
        self.cache_salt = cache_salt
        self.adapter = adapter
        self.adapter_digest = adapter_digest
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.max_total_tokens = 0
        self.stop_ids = NO_TOKENS
        self.order: tuple[int, int, float, int] = (0, 0, 0.0, 0)
        self.status = Status.WAITING
        self.finish_reason: str | None = None
        self.stop_reason: int | None = None
        self.error: EngineError | None = None
        self.num_cached_tokens: int | None = None
        self.num_preemptions = 0
        self.num_failed_steps = 0
        self.last_step = 0
        self.stale_step = 0
        self.block_hashes: list[bytes] = []
        self.reset_progress()

    @classmethod
    def from_submit(cls, submit: Submit, arrival: float, adapter_digest: bytes | None = None) -> Request:
        """`arrival` only has to grow: a sequence number or monotonic seconds."""
        return cls(
            submit.id,
            submit.prompt_token_ids,
            submit.params,
            arrival,
            priority=submit.priority,
            cache_salt=submit.cache_salt,
            adapter=submit.adapter,
            adapter_digest=adapter_digest,
        )

    def reset_progress(self) -> None:
        """Nothing is computed any more and all results in flight are stale. Committed tokens stay."""
        self.block_ids: list[int] = []
        self.num_computed_tokens = 0
        self.num_pending = 0
        self.num_dropped_blocks = 0
        self.num_published_blocks = 0
        self.num_verified_blocks = 0
        self.trusted_blocks: list[int] = []
        self.stale_step = self.last_step

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens, also those that are pending."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    @property
    def needs_prompt_logits(self) -> bool:
        """Its prompt must be computed in full, cached or not; only until the first token is out."""
        return self.params.prompt_logprobs is not None and not self.num_output_tokens

    def __repr__(self) -> str:
        return (
            f"Request({self.id!r}, {self.status.value}, computed {self.num_computed_tokens} of "
            f"{self.num_tokens}, prompt {self.num_prompt_tokens})"
        )
