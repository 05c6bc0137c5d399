"""Errors as clients see them: OpenAI's shape, string codes, the right headers. The one place that turns them
into HTTP.
"""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import Response

from shoal_api.names import HEADER_NOT_STARTED
from shoal_engine.errors import EngineError, InvalidRequest, QueueFull
from shoal_engine.server.replies import Error, ErrorReply, encode


class Unauthorized(InvalidRequest):
    status = 401
    code = "invalid_api_key"


class NotFound(InvalidRequest):
    status = 404
    code = "not_found"


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


def reply_of(error: EngineError) -> ErrorReply:
    return ErrorReply(Error(message=error.message, type=error.type, param=error.param, code=error.code))


def response_of(error: EngineError, *, started: bool = False) -> Response:
    headers = {}
    if isinstance(error, QueueFull):
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status in (429, 503) and not started:
        headers[HEADER_NOT_STARTED] = "true"  # a router may send it to another replica
    return Response(encode(reply_of(error)), error.status, headers, media_type="application/json")


def of_status(status: int, headers: dict[str, str] | None = None) -> Response:
    """For what the framework itself refuses: unknown routes and methods."""
    phrase = HTTPStatus(status).phrase
    kinds: dict[int, EngineError] = {
        404: NotFound("There is nothing at this path. /openapi.json lists what there is."),
        405: MethodNotAllowed("This path takes other methods; see the allow header."),
    }
    error = kinds.get(status) or InvalidRequest(f"{phrase}.", code=phrase.lower().replace(" ", "_"))
    response = response_of(error)
    response.status_code = status
    response.headers.update(headers or {})
    return response


def internal_error() -> EngineError:
    """What a client learns of our bugs: nothing; the traceback is in the log."""
    return EngineError(
        "The server failed on this request. Its log has the cause, under this reply's X-Request-Id."
    )
