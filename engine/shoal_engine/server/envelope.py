"""What wraps every request: its id, its key, its count, and the last catch of what went wrong. Plain ASGI, no
buffering.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal_api.names import HEADER_REQUEST_ID
from shoal_engine.errors import EngineError
from shoal_engine.server.admission import bad_request_id, valid_request_id
from shoal_engine.server.fault_replies import Unauthorized, internal_error, response_of

log = logging.getLogger(__name__)

# Paths that need no key: probes, scrapers and the router ask them. Everything else does, known or not.
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/version"})


class Keys:
    """API keys as their digests, so that comparing takes the same time whatever was sent."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def admit(self, authorization: bytes) -> bool:
        """Whether an Authorization header carries one of the keys; always, if there are none."""
        if not self._digests:
            return True
        scheme, _, key = authorization.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        known = [hmac.compare_digest(digest, each) for each in self._digests]  # all of them, always
        return scheme.lower() == b"bearer" and any(known)


class Envelope:
    """The outermost application. Sets scope["state"]["request_id"]."""

    def __init__(self, app: ASGIApp, keys: Keys, on_response: Callable[[str, int], None]) -> None:
        self._app = app
        self._keys = keys
        self._on_response = on_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = _header(scope, HEADER_REQUEST_ID).decode("latin-1")
        request_id = given if valid_request_id(given) else secrets.token_hex(12)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (HEADER_REQUEST_ID.encode(), request_id.encode())]
                self._on_response(_route(scope), message["status"])
            await send(message)

        try:
            if scope["path"] not in OPEN_PATHS and not self._keys.admit(_header(scope, "authorization")):
                raise Unauthorized("Give a valid API key: `authorization: Bearer KEY`.")
            if given and given != request_id:
                raise bad_request_id("X-Request-Id")
            scope.setdefault("state", {})["request_id"] = request_id
            await self._app(scope, receive, send_with_id)
        except EngineError as error:
            await response_of(error)(scope, receive, send_with_id)
        except Exception:
            log.exception("request failed", extra={"request_id": request_id})
            if not started:
                await response_of(internal_error())(scope, receive, send_with_id)


def _header(scope: Scope, name: str) -> bytes:
    """The value of a header, empty if there is none. A second one of the same name does not count."""
    wanted = name.encode()
    value: bytes = next((value for key, value in scope["headers"] if key == wanted), b"")
    return value.strip()


def _route(scope: Scope) -> str:
    """A label of bounded variety: the route's own template, never what the client wrote."""
    route = scope.get("route")
    return getattr(route, "path", "other")
