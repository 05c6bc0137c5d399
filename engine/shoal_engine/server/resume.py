"""What it takes to go on with a stream that another engine began: its state, and how far its client has seen it.

Pure. A replica that dies takes a stream's text, sampling and blocks along, but all of them follow from the request, the
token ids so far, and the few facts in State that one engine has chosen and another could not know.
"""

from __future__ import annotations

import base64
import binascii
import enum
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from shoal_api.names import HEADER_RESUME
from shoal_engine.choice_text import ChoiceText, Delta
from shoal_engine.errors import InvalidRequest
from shoal_engine.messages import Output
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.server.protocol import CompletionBody, Generate


class Stage(enum.IntEnum):
    """What a stream's last event was, in the order of a stream."""

    NONE = 0  # nothing has been sent
    OPEN = 1  # the chunk with the role
    TOKENS = 2
    FINISH = 3  # the chunk with the finish_reason
    USAGE = 4
    DONE = 5

    @property
    def word(self) -> bytes:
        return _WORDS[self]


_WORDS = (b"", b"open", b"tokens", b"finish", b"usage", b"done")
_STAGES = {word.decode(): Stage(number) for number, word in enumerate(_WORDS)}


class State(msgspec.Struct, frozen=True, array_like=True):
    """What the first engine has chosen. `cached_tokens` None: it had not been known when the reply began."""

    fingerprint: (
        str  # of model, number format, device and version: with another one the text would be another
    )
    id: str
    created: int
    seed: int | None  # None: nothing is drawn
    prompt: int  # digest of its token ids: a template may write the date, or have been changed
    cached_tokens: int | None


class Point(BaseModel):
    """How far the client has seen the stream: its last event, and all token ids up to that."""

    model_config = ConfigDict(strict=True)
    stage: Literal["", "open", "tokens", "finish", "usage", "done"]
    ids: Annotated[list[int], Field(fail_fast=True, max_length=2_000_000)]
    cached_tokens: int | None = None

    @property
    def seen(self) -> Stage:
        return _STAGES[self.stage]


@dataclass(frozen=True, slots=True)
class Resume:
    state: State
    point: Point


class StateMismatch(InvalidRequest):
    """This engine would not go on as the one that began; one that is like it may be elsewhere."""

    status = 409
    code = "resume_mismatch"


def digest(token_ids: list[int]) -> int:
    """Of a prompt; 64 bits, in a microsecond per 150 tokens."""
    return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(token_ids))


def encode_state(state: State) -> bytes:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(state)).rstrip(b"=")


def decode_state(text: str) -> State:
    """Raises InvalidRequest."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.msgpack.decode(data, type=State)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise InvalidRequest(f"{HEADER_RESUME} is not a state of ours.", param=HEADER_RESUME) from None


def resumable(body: Generate, params: SamplingParams, num_prompts: int) -> bool:
    """Whether another engine could go on with the answer: all of it must follow from one choice's token ids."""
    with_prompt = params.prompt_logprobs is not None or (isinstance(body, CompletionBody) and body.echo)
    return bool(body.stream) and not with_prompt and num_prompts * params.n == 1


def check_point(point: Point, params: SamplingParams) -> None:
    """Raise InvalidRequest unless a stream of such a request can have come so far."""
    if point.seen <= Stage.OPEN and point.ids:
        raise _wrong("no token can have been seen before the first event that has some")
    if len(point.ids) > (params.max_tokens or 0):
        raise _wrong(f"they are more than max_tokens, {params.max_tokens}")


def replay(
    text: ChoiceText, point: Point, params: SamplingParams, eos_token_ids: frozenset[int]
) -> Delta | None:
    """Bring a choice's text to where the client has seen it. Returns how it ends, if those tokens have ended it
    and the client has not seen that. Raises InvalidRequest.
    """
    ids = point.ids
    if point.seen >= Stage.FINISH:
        text.close(len(ids))
        return None
    reason, stop = _end(ids, params, eos_token_ids)
    said = ids[:-1] if reason == "stop" and not params.include_stop_str_in_output else ids
    delta = text.advance(Output("", list(said)))
    if delta.finish_reason is not None:
        if text.num_tokens != len(ids):
            raise _wrong("a stop string ends the text before the last of them")
        return Delta(finish_reason=delta.finish_reason, stop_reason=delta.stop_reason)
    if reason is None:
        return None
    delta = text.advance(Output("", ids[len(said) :], finish_reason=reason, stop_reason=stop))
    return Delta(delta.text, finish_reason=delta.finish_reason, stop_reason=delta.stop_reason)


def _end(
    ids: list[int], params: SamplingParams, eos_token_ids: frozenset[int]
) -> tuple[str | None, int | None]:
    """finish_reason and stop_reason of a request with these output tokens, as the scheduler decides it."""
    if not ids:
        return None, None
    last = ids[-1]
    is_eos = last in eos_token_ids and not params.ignore_eos
    if len(ids) > params.min_tokens and (is_eos or last in params.stop_token_ids):
        return "stop", None if is_eos else last
    return ("length" if len(ids) == params.max_tokens else None), None


def _wrong(reason: str) -> InvalidRequest:
    return InvalidRequest(f"resume.ids: {reason}.", param="resume.ids")
