"""Every path there is, and who may use it: an exact allow-list. What a path does is app.py's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest

from shoal_router.errors import MethodNotAllowed, PathNotFound, Unauthorized
from shoal_router.prompt import Work
from shoal_router.request import Request

READ = (b"GET", b"HEAD")
MODEL_PREFIX = "/v1/models/"


@dataclass(frozen=True, slots=True)
class Route:
    """A path is passed on to a replica when it has `work`; `open` ones need no key."""

    methods: tuple[bytes, ...]
    work: Work | None = None
    open: bool = False


ROUTES: dict[str, Route] = {
    "/v1/chat/completions": Route((b"POST",), Work.GENERATE),
    "/v1/completions": Route((b"POST",), Work.GENERATE),
    "/v1/embeddings": Route((b"POST",), Work.EMBED),
    "/tokenize": Route((b"POST",), Work.TOKENIZE),
    "/detokenize": Route((b"POST",), Work.TOKENIZE),
    "/v1/models": Route(READ),
    "/health": Route(READ, open=True),
    "/ready": Route(READ, open=True),
    "/metrics": Route(READ, open=True),
    "/version": Route(READ, open=True),
    "/debug": Route(READ),
}
_ONE_MODEL = Route(READ)


def find_route(request: Request, api_keys: Sequence[bytes]) -> Route:
    """The route of a request that may use it. Raises PathNotFound, MethodNotAllowed or Unauthorized."""
    route = ROUTES.get(request.path)
    if route is None:
        if not request.path.startswith(MODEL_PREFIX):
            raise PathNotFound(f"there is no {request.path[:100]} here; see /v1/models, /v1/chat/completions")
        route = _ONE_MODEL
    if request.method not in route.methods:
        error = MethodNotAllowed(f"{request.path} takes {b', '.join(route.methods).decode()}")
        error.allow = b", ".join(route.methods).decode()
        raise error
    if api_keys and not route.open:
        _check_key(request.authorization, api_keys)
    return route


def _check_key(authorization: bytes, api_keys: Sequence[bytes]) -> None:
    scheme, _, key = authorization.partition(b" ")
    key = key.strip(b" \t")
    # Every key is compared, so that the time taken tells nothing about which one was close.
    fits = [compare_digest(key, known) for known in api_keys]
    if scheme.lower() != b"bearer" or not any(fits):
        raise Unauthorized("send a valid key as 'Authorization: Bearer KEY'")
