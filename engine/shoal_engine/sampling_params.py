"""How one request wants its tokens chosen. A frozen value, checked on construction; knows nothing of tensors or HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from shoal_engine.errors import InvalidRequest

MAX_LOGPROBS = 20
MAX_N = 128
MAX_STOP_STRINGS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Names and meanings are vLLM's. Raises InvalidRequest that names the field.

    temperature 0 is greedy. top_k 0 or -1 keeps every token. max_tokens None means up to the model's context.
    logprobs k returns the chosen token and the k most likely ones, before any processing of the logits.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _strings(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", tuple(self.allowed_token_ids))
        for field, low, high in _RANGES:
            value = getattr(self, field)
            if value is None and field in _OPTIONAL:
                continue
            if not low <= value <= high:  # also false for NaN
                raise InvalidRequest(f"{field} must be between {low} and {high}, got {value}", param=field)
        if self.top_p == 0.0:
            raise InvalidRequest("top_p must be greater than 0", param="top_p")
        if len(self.stop) > MAX_STOP_STRINGS or any(not text for text in self.stop):
            raise InvalidRequest(f"stop takes up to {MAX_STOP_STRINGS} non-empty strings", param="stop")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}", param="min_tokens"
            )
        for token_id, bias in (self.logit_bias or {}).items():
            if not -100.0 <= bias <= 100.0:
                raise InvalidRequest(
                    f"logit_bias of token {token_id} must be between -100 and 100", param="logit_bias"
                )

    def fan_out(self) -> list[SamplingParams]:
        """One n=1 request per completion. Seeds are derived, so a seeded n=3 gives three different, repeatable texts."""
        if self.n == 1:
            return [self]
        seeds = [None] * self.n if self.seed is None else [self.seed + index for index in range(self.n)]
        return [replace(self, n=1, seed=seed) for seed in seeds]

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def needs_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)


_BIG = 2**63 - 1
_OPTIONAL = frozenset({"seed", "max_tokens", "logprobs", "prompt_logprobs"})
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("n", 1, MAX_N),
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("top_k", -1, _BIG),
    ("min_p", 0.0, 1.0),
    ("seed", -(2**63), _BIG),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.01, 100.0),
    ("max_tokens", 1, _BIG),
    ("min_tokens", 0, _BIG),
    ("logprobs", 0, MAX_LOGPROBS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
)


def _strings(stop: str | Iterable[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)
