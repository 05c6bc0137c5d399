"""A resumable stream as the router sees it: events with their lines, cut anywhere, and the request that continues it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tests.engine.server.in_process import Replica
from tests.engine.server.running import model_text

STATE = "x-shoal-resume"
RESUMABLE = {"x_shoal_resumable": "1"}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# Tokens to speak with: characters of several tokens, words, and the end of the text.
WORDS = "Es grüßt der 🦊 aus Österreich 日本語\u2028 STOP STO ST OP\n\n👩‍🚀 und zwar herzlich."
ALLOWED = sorted(set(model_text().tokenizer.encode(WORDS, add_special_tokens=False)))
DRAWN = {"seed": 11, "temperature": 1.3, "allowed_token_ids": ALLOWED}
_EVENT = re.compile(rb":shoal (open|tokens|finish|usage|done) ((?:\d+(?:\.\d+)*)?)\ndata: ([^\n]*)\n\n")


@dataclass(frozen=True, slots=True)
class Event:
    stage: str
    ids: list[int]
    data: bytes


@dataclass(frozen=True, slots=True)
class Stream:
    state: str
    events: list[Event]

    @property
    def data(self) -> list[bytes]:
        return [event.data for event in self.events]

    def ids(self, count: int) -> list[int]:
        """The tokens that the first `count` events have consumed."""
        return [token for event in self.events[:count] for token in event.ids]

    def envelope(self, body: dict[str, Any], count: int) -> bytes:
        """What the router sends on when it has seen `count` events of the stream that `body` asked for."""
        stage = self.events[count - 1].stage if count else ""
        return envelope(body, stage, self.ids(count))


def envelope(body: Any, stage: str, ids: Sequence[int]) -> bytes:
    return json.dumps(
        {"resume": {"stage": stage, "ids": list(ids), "cached_tokens": None}, "request": body}
    ).encode()


def stream_of(response: httpx.Response) -> Stream:
    """Every byte of it belongs to an event with a line, or this fails."""
    assert response.status_code == 200, response.text
    found = list(_EVENT.finditer(response.content))
    assert b"".join(match[0] for match in found) == response.content
    events = [Event(m[1].decode(), [int(i) for i in m[2].split(b".") if i], m[3]) for m in found]
    return Stream(response.headers[STATE], events)


def content_of(data: Sequence[bytes]) -> dict[str, Any]:
    """What a client makes of a stream's events, however they were cut into events."""
    whole: dict[str, Any] = {"text": "", "logprobs": {}, "token_ids": [], "ends": [], "usage": None}
    for each in data:
        if each == b"[DONE]":
            whole["ends"].append("done")
            continue
        chunk = json.loads(each)
        whole["head"] = [chunk[key] for key in ("id", "created", "model", "system_fingerprint", "object")]
        whole["usage"] = chunk.get("usage")
        for choice in chunk["choices"]:
            delta = choice.get("delta", {})
            whole["text"] += choice.get("text", "") + delta.get("content", "")
            whole["token_ids"] += choice.get("token_ids", [])
            for key, entries in (choice["logprobs"] or {}).items():
                whole["logprobs"].setdefault(key, []).extend(entries)
            if choice["finish_reason"]:
                whole["ends"].append([choice["finish_reason"], choice.get("stop_reason")])
            whole["ends"] += [delta["role"]] if "role" in delta else []
    return whole


def asked(path: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A body with the prompt that its path takes; usage is told, and 12 tokens are, unless it says otherwise."""
    prompt: dict[str, Any] = {"prompt": WORDS}
    if path == CHAT:
        prompt = {"messages": [{"role": "user", "content": WORDS}]}
    plain = {"stream": True, "max_tokens": 12, "stream_options": {"include_usage": True}}
    return {**prompt, **plain, **fields}


async def undisturbed(on: Replica, path: str, body: dict[str, Any]) -> Stream:
    return stream_of(await on.post(path, body, **RESUMABLE))


async def rest_of(stream: Stream, on: Replica, path: str, body: dict[str, Any], count: int) -> Stream:
    headers = {**RESUMABLE, STATE: stream.state}
    return stream_of(await on.post(path, stream.envelope(body, count), **headers))
