"""May a request be queued? Pure checks of its size and of the queue."""

from __future__ import annotations

import math

from shoal_engine.errors import ContextTooLong, InvalidRequest, KVCacheExhausted, QueueFull
from shoal_engine.limits import SchedulerLimits
from shoal_engine.request import Request

MAX_RETRY_AFTER_S = 120


def check_length(request: Request, max_model_len: int) -> None:
    """Raises InvalidRequest for an empty prompt, ContextTooLong if the context is too short for it."""
    num_prompt, max_tokens = request.num_prompt_tokens, request.params.max_tokens
    if not num_prompt:
        raise InvalidRequest("the prompt is empty; send at least one token", param="prompt")
    if max_tokens is not None and request.num_given_tokens >= max_tokens:
        raise InvalidRequest(
            f"{request.num_given_tokens} tokens are generated already and max_tokens is {max_tokens}",
            param="output_token_ids",
        )
    if num_prompt + (max_tokens or request.num_given_tokens + 1) > max_model_len:
        asked = "" if max_tokens is None else f" and max_tokens is {max_tokens}"
        raise ContextTooLong(
            f"this model's context is {max_model_len} tokens, the prompt has {num_prompt}{asked}; "
            "shorten the prompt or ask for fewer tokens",
            param="prompt" if num_prompt >= max_model_len else "max_tokens",
        )


def check_queue(
    request: Request,
    limits: SchedulerLimits,
    num_waiting: int,
    num_waiting_tokens: int,
    free_seats: int,
    drain_tokens_per_s: float | None,
) -> None:
    """Raises QueueFull. Requests that the next plan will seat are not queued, however many arrive in one
    step.

    A prompt of any length may wait alone. The advice when to retry is how long the waiting tokens take.
    """
    max_reqs, max_tokens = limits.max_num_queued_reqs, limits.max_num_queued_tokens
    tokens = num_waiting_tokens + len(request.token_ids)
    if max_reqs is not None and num_waiting >= max_reqs + free_seats:
        reason = f"{num_waiting} requests wait and --max-num-queued-reqs is {max_reqs}"
    elif max_tokens is not None and num_waiting and tokens > max_tokens:
        reason = f"{tokens} tokens would wait and --max-num-queued-tokens is {max_tokens}"
    else:
        return
    wait_s = 1 if drain_tokens_per_s is None else math.ceil(num_waiting_tokens / drain_tokens_per_s)
    wait_s = max(1, min(MAX_RETRY_AFTER_S, wait_s))
    raise QueueFull(f"the queue is full: {reason}; retry in {wait_s} s", retry_after_s=wait_s)


def exhausted(num_tokens: int, capacity_tokens: int) -> KVCacheExhausted:
    """One request alone is larger than the whole KV cache."""
    return KVCacheExhausted(
        f"the request has {num_tokens} tokens, the KV cache of this engine holds {capacity_tokens}; shorten "
        "the prompt or max_tokens, or give it more --kv-cache-memory-bytes or --gpu-memory-utilization"
    )
