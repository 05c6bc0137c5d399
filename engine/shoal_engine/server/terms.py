"""What a generating request says beside its body: who asks under which id, what the router adds, and whether its
stream is to go on elsewhere. Reads headers, and the envelope that a continued request comes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec
from pydantic import BaseModel
from starlette.requests import Request

from shoal_api.names import HEADER_RESUMABLE, HEADER_RESUME
from shoal_engine.errors import InvalidRequest
from shoal_engine.server.body import parse_body, read_bytes
from shoal_engine.server.limits import Limits
from shoal_engine.server.resume import Point, Resume, decode_state
from shoal_engine.server.router_headers import NOTHING_SAID, RouterHeaders

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Terms:
    """resumable: the stream says how far it has come. resume: it goes on where another engine's has ended."""

    request_id: str
    router: RouterHeaders = NOTHING_SAID
    resumable: bool = False
    resume: Resume | None = None


async def read_generation(request: Request, body_type: type[Body], limits: Limits) -> tuple[Body, Terms]:
    """The body that the client has sent, and the rest. Raises as read_bytes and parse_body."""
    request_id, state = request.state.request_id, request.headers.get(HEADER_RESUME)
    router = RouterHeaders.of(request.headers)
    if state is None:
        data = await read_bytes(request, limits.body_bytes)
        terms = Terms(request_id, router, HEADER_RESUMABLE in request.headers)
        return parse_body(data, body_type, limits), terms
    data = await read_bytes(request, limits.body_bytes + limits.resume_bytes)
    point, body = _opened(data)
    resume = Resume(decode_state(state), parse_body(point, Point, limits, within="resume"))
    return parse_body(body, body_type, limits), Terms(request_id, router, True, resume)


def _opened(envelope: bytes) -> tuple[bytes, bytes]:
    """`{"resume": ..., "request": ...}` in its two parts, the client's own body as it was sent."""
    try:
        parts = msgspec.json.decode(envelope, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        raise InvalidRequest(
            f"With {HEADER_RESUME} the body is an object with `resume` and `request`.", code="invalid_json"
        ) from None
    for field in ("resume", "request"):
        if field not in parts:
            raise InvalidRequest(f"{field} is missing.", param=field)
    return bytes(parts["resume"]), bytes(parts["request"])
