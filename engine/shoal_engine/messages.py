"""What crosses the socket between API process and engine process: token ids and numbers, never text or tensors.

Typed msgpack (msgspec), so a malformed frame is an error and nothing in it can be executed. What comes by the
hundred per step holds no cycles and is kept from the garbage collector (gc=False), which would cost more than
the decoding.
"""

from __future__ import annotations

import msgspec

from shoal_engine.errors import EngineError, QueueFull
from shoal_engine.sampling_params import SamplingParams


class PromptTags(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A router's hashes of a prompt's beginnings: `hashes[i]` stands for its first `ends[i]` tokens, rising."""

    hashes: list[int]
    ends: list[int]


class TagChanges(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tags whose content entered or left the prefix cache; none is in both."""

    stored: list[int]
    evicted: list[int]


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """One generation. n > 1 is fanned out by the API process into requests of n=1 with derived seeds."""

    id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0  # lower runs sooner, as in vLLM
    cache_salt: str = ""
    adapter: str = ""
    tags: PromptTags | None = None
    output_token_ids: list[int] = []  # generated elsewhere: it goes on as if it had been preempted after them


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    ids: list[str]


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Leave the loop and exit 0; the API process has already drained or given up."""


class Logprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    token_id: int
    logprob: float
    rank: int  # 1 = most likely


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The chosen token and the k most likely ones, by falling logprob."""

    chosen: Logprob
    top: list[Logprob]


class Output(msgspec.Struct, frozen=True, tag="output", gc=False):
    """What one step did for one request. `finish_reason` is set exactly once: stop, length, abort or error."""

    id: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # once, with the first token; [0] is None
    num_cached_tokens: int | None = (
        None  # once, with the first token: prompt tokens served from the prefix cache
    )
    queued_s: float | None = (
        None  # once, with the first token: seconds from add() to the first step that computed it
    )
    finish_reason: str | None = None
    stop_reason: int | None = None  # the stop token id that ended it, None for EOS
    error_code: str | None = None
    error_message: str | None = None
    error_status: int = 500  # HTTP status of the error; the rest as in errors.EngineError
    error_param: str | None = None
    retry_after_s: int | None = None


def failed_output(request_id: str, error: EngineError) -> Output:
    """The last output of a request that ended with an error."""
    return Output(
        id=request_id,
        finish_reason="error",
        error_code=error.code,
        error_message=error.message,
        error_status=error.status,
        error_param=error.param,
        retry_after_s=error.retry_after_s if isinstance(error, QueueFull) else None,
    )


class StepCost(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The time of a step: base_s + prefill_token_s * prompt tokens + sequence_s * decoding sequences."""

    base_s: float
    prefill_token_s: float
    sequence_s: float


class Stats(msgspec.Struct, frozen=True):
    """Gauges as of this step and counters since start; names follow vLLM's metrics."""

    num_running: int = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0  # uncomputed prompt tokens of the waiting requests
    kv_cache_usage: float = 0.0  # 0..1
    prefix_cache_queries: int = 0  # tokens
    prefix_cache_hits: int = 0  # tokens
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    step_seconds: float = 0.0  # of the last step
    step_tokens: int = 0  # of the last step
    queued_prefill_tokens: int = 0  # to be computed, of running and waiting requests, without cached ones
    step_cost: StepCost | None = None  # None until enough steps have been measured


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    outputs: list[Output]
    stats: Stats
    tags: TagChanges | None = None  # since the message before; None: nothing has changed


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    phase: str  # "weights", "warmup", ...
    done: int = 0
    total: int = 0  # bytes for "weights"; 0 = unknown


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Sent after one real token has been generated."""

    max_model_len: int
    num_blocks: int
    block_tokens: int
    vocab_size: int
    device: str
    dtype: str
    load_seconds: dict[str, float]  # by phase
    max_requests: int = 0  # running and waiting ones that the engine takes; 0: it does not say
    max_num_seqs: int = 0  # requests that it computes in one step; 0: it does not say
    eos_token_ids: frozenset[int] = frozenset()


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine process is about to exit; `message` is for the user and says what to do."""

    message: str
    exit_code: int


ToEngine = Submit | Abort | Stop
FromEngine = Outputs | Loading | Ready | Failed
