"""From the bytes of a request to a checked body: size, depth and syntax before any object is made of them."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from shoal_engine.errors import InvalidRequest
from shoal_engine.server.limits import Limits

Body = TypeVar("Body", bound=BaseModel)

# Possessive throughout: no input, closed or not, is scanned twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "body_too_large"


class UnsupportedMedia(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


async def read_body(request: Request, body_type: type[Body], limits: Limits) -> Body:
    """Raises as the two that it calls."""
    return parse_body(await read_bytes(request, limits.body_bytes), body_type, limits)


async def read_bytes(request: Request, most: int) -> bytes:
    """Raises InvalidRequest and its kinds; starlette's ClientDisconnect if the client leaves while sending."""
    _check_headers(request, most)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise _too_large(most)
    return bytes(data)


def parse_body(data: bytes, body_type: type[Body], limits: Limits, within: str = "") -> Body:
    """within: the field of an outer object that `data` is the value of. Raises InvalidRequest."""
    check_nesting(data, limits)
    try:
        return body_type.model_validate_json(data)
    except ValidationError as error:
        raise _first_fault(error, within) from None


def check_nesting(data: bytes, limits: Limits) -> None:
    """Raise InvalidRequest for JSON nested too deeply or of too many parts; says nothing on whether it is
    JSON at all.

    Brackets inside of strings do not count. All scanning happens in C: 8 MiB take at most a tenth of a
    second.
    """
    if data.count(b'"') - data.count(b'\\"') > 2 * limits.json_strings:
        raise InvalidRequest(
            f"The body holds more than {limits.json_strings} strings.", code="body_too_complex"
        )
    if data.count(b"[") + data.count(b"{") <= limits.json_depth:
        return
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    if len(brackets) > 2 * limits.json_containers:
        raise InvalidRequest(
            f"The body holds more than {limits.json_containers} JSON objects and arrays.",
            code="body_too_complex",
        )
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > limits.json_depth:
            raise InvalidRequest(
                f"The body is nested deeper than {limits.json_depth} levels.", code="body_too_deep"
            )


def _check_headers(request: Request, most: int) -> None:
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json":
        raise UnsupportedMedia(
            "Send the body as JSON, with content-type: application/json.", param="content-type"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia(
            "Send the body uncompressed, without content-encoding.", param="content-encoding"
        )
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most:
        raise _too_large(most)


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body exceeds {most} bytes.")


def _first_fault(error: ValidationError, within: str) -> InvalidRequest:
    """One fault is enough for the client; the text names the field and never repeats the value."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if fault["type"] == "json_invalid":
        reason = fault["msg"].removeprefix("Invalid JSON: ")
        return InvalidRequest(f"The body is not valid JSON: {reason}.", code="invalid_json")
    param = _field((within, *fault["loc"]) if within else fault["loc"])
    return InvalidRequest(f"{param or 'The body'}: {fault['msg']}.", param=param)


def _field(location: tuple[int | str, ...]) -> str | None:
    """("messages", 0, "content") as "messages[0].content"; the names of union members are ours, not the
    client's.
    """
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and not part.startswith(_MEMBER) and part not in _TYPES:
            path += f".{part}" if path else part
    return path[:MAX_PARAM_CHARS] or None


MAX_PARAM_CHARS = 200  # a key of logit_bias may be as long as the body
_MEMBER = "as_"  # tags of union members in protocol.py begin with this
_TYPES = frozenset({"str", "int", "float", "bool"})  # and the others are named by their types
