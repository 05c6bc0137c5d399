"""From a body's fields to SamplingParams, and what is refused because we cannot do it yet. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shoal_engine.errors import InvalidRequest
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.server.protocol import ChatBody, CompletionBody, Generate

# Field -> values that ask for nothing; any other value would change the answer in a way we cannot deliver.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "bad_words": (None, []),
    "best_of": (None, 1),
    "chat_template": (None,),
    "documents": (None, []),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logits_processors": (None, []),
    "modalities": (None, [], ["text"]),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "return_tokens_as_token_ids": (None, False),
    "structured_outputs": (None, {}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "use_beam_search": (None, False),
    "web_search_options": (None,),
}
COMPLETION_MAX_TOKENS = 16  # OpenAI's default; chat has none
DEFAULTS_OF_MODEL = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

_SAME_NAME = (
    *(
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "min_tokens",
        "stop_token_ids",
        "ignore_eos",
    ),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "include_stop_str_in_output"),
    *("skip_special_tokens", "allowed_token_ids", "prompt_logprobs"),
)


def check_supported(body: Generate) -> None:
    """Raise InvalidRequest that names the first field we know and cannot serve."""
    for field, harmless in UNSUPPORTED.items():
        if getattr(body, field, None) not in harmless:
            raise _unsupported(field, field)
    if body.response_format is not None and body.response_format.type != "text":
        raise _unsupported("response_format", f"response_format {body.response_format.type!r}")
    if isinstance(body, ChatBody) and body.echo:
        raise _unsupported("echo", "echo in chat")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is only for stream: true.", param="stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise InvalidRequest("prompt_logprobs needs stream: false.", param="prompt_logprobs")


def sampling_params(body: Generate, model_defaults: Mapping[str, float]) -> SamplingParams:
    """Raises InvalidRequest that names the field. `model_defaults` come from the model's
    generation_config.json.
    """
    values: dict[str, Any] = dict(model_defaults)
    values |= {name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None}
    if body.logit_bias is not None:
        values["logit_bias"] = _token_biases(body.logit_bias)
    if isinstance(body, ChatBody):
        values["max_tokens"] = (
            body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        )
        values["logprobs"] = _chat_logprobs(body)
    elif isinstance(body, CompletionBody):
        values["max_tokens"] = _completion_max_tokens(body)
        values["logprobs"] = body.logprobs
        if body.echo and body.logprobs is not None:
            values.setdefault("prompt_logprobs", body.logprobs)
    return SamplingParams(**values)


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """No id outside of the vocabulary may reach the batch, where it could touch other requests' rows."""
    for field, ids in (
        ("logit_bias", params.logit_bias or ()),
        ("allowed_token_ids", params.allowed_token_ids or ()),
        ("stop_token_ids", params.stop_token_ids),
    ):
        check_vocabulary(ids, vocab_size, field)
    if params.allowed_token_ids is not None and not params.allowed_token_ids:
        raise InvalidRequest("allowed_token_ids must name at least one token.", param="allowed_token_ids")


def check_vocabulary(ids: Iterable[int], vocab_size: int, param: str) -> None:
    if min(ids, default=0) < 0 or max(ids, default=0) >= vocab_size:
        raise InvalidRequest(f"{param}: token ids must be between 0 and {vocab_size - 1}.", param=param)


def _completion_max_tokens(body: CompletionBody) -> int:
    if body.max_tokens == 0 and body.echo:
        return 1  # echo alone: one token is computed to get the prompt's logprobs, and not shown
    return COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens


def _chat_logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    return None


def _token_biases(biases: Mapping[str, float]) -> dict[int, float]:
    if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in biases):
        raise InvalidRequest("logit_bias: keys must be token ids.", param="logit_bias")
    return {int(key): bias for key, bias in biases.items()}


def _unsupported(param: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{what} is not supported yet.", param=param, code="unsupported_parameter")
