"""One streamed request to an OpenAI-compatible server, with the time of everything that came back. Knows no statistics."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from shoal_engine.bench.load import Sized

# Chat takes text only: words that are one token in most vocabularies, so that lengths come close.
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school")


class Target(NamedTuple):
    """Where requests go. `extra` goes into every body as it is."""

    model: str
    chat: bool
    temperature: float
    extra: Mapping[str, Any] = {}

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, request: Sized) -> dict[str, Any]:
        """What is posted; completions get token ids, chat as many words."""
        if self.chat:
            text = " ".join(WORDS[token % len(WORDS)] for token in request.prompt)
            prompt: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        else:
            prompt = {"prompt": request.prompt}
        return {
            "model": self.model,
            **prompt,
            "max_tokens": request.output_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }


@dataclass(slots=True)
class Answer:
    """`events_s`: when each piece of text came, in seconds since the request was sent. `error` is empty on success."""

    events_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    end_s: float = 0.0
    error: str = ""

    @property
    def first_s(self) -> float:
        return self.events_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """Between two pieces; a piece may hold several tokens."""
        return [later - sooner for sooner, later in zip(self.events_s, self.events_s[1:], strict=False)]

    @property
    def per_token_s(self) -> float | None:
        """Mean seconds of a token behind the first; None when there is only that one."""
        if self.output_tokens < 2:
            return None
        return (self.events_s[-1] - self.events_s[0]) / (self.output_tokens - 1)


async def ask(http: httpx.AsyncClient, target: Target, request: Sized) -> Answer:
    """Send it and read the stream to its end. What goes wrong is the answer's `error`; nothing is raised."""
    answer = Answer()
    started = time.perf_counter()
    try:
        async with http.stream("POST", target.path, json=target.body(request)) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                answer.error = f"HTTP {response.status_code}: {_message(text)}"
                return answer
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    _take(answer, line.removeprefix("data:").strip(), time.perf_counter() - started)
    except httpx.HTTPError as error:
        answer.error = type(error).__name__
    answer.end_s = time.perf_counter() - started
    if not answer.error and not answer.events_s:
        answer.error = "the stream ended without a token"
    return answer


def _take(answer: Answer, data: str, now_s: float) -> None:
    """Apply one event of the stream."""
    if data == "[DONE]":
        return
    try:
        event = json.loads(data)
    except ValueError:
        answer.error = f"an event that is no JSON: {data[:80]}"
        return
    if not isinstance(event, dict):
        answer.error = f"an event that is no object: {data[:80]}"
        return
    if "error" in event:
        answer.error = _message(data)
        return
    if usage := event.get("usage"):
        answer.prompt_tokens = usage.get("prompt_tokens", 0)
        answer.output_tokens = usage.get("completion_tokens", 0)
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    if any(_has_text(choice) for choice in event.get("choices", ())):
        answer.events_s.append(now_s)


def _has_text(choice: Mapping[str, Any]) -> bool:
    """Chat opens with an event that only names the role: no token has been computed for it."""
    return bool(choice.get("text") or (choice.get("delta") or {}).get("content"))


def _message(text: str) -> str:
    """The message of an error in OpenAI's shape, or what there is instead."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
