"""Every path there is: an exact allow-list. Who may use it is gate.py's, what it does app.py's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shoal_router.errors import MethodNotAllowed, PathNotFound
from shoal_router.prompt import Work
from shoal_router.request import Request

READ: Final = (b"GET", b"HEAD")
MODEL_PREFIX: Final = "/v1/models/"


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
_ONE_MODEL: Final = Route(READ)


def find_route(request: Request) -> Route:
    """The route of a request. Raises PathNotFound or MethodNotAllowed."""
    route = ROUTES.get(request.path)
    if route is None:
        if not request.path.startswith(MODEL_PREFIX):
            raise PathNotFound(f"there is no {request.path[:100]} here; see /v1/models, /v1/chat/completions")
        route = _ONE_MODEL
    if request.method not in route.methods:
        error = MethodNotAllowed(f"{request.path} takes {b', '.join(route.methods).decode()}")
        error.allow = b", ".join(route.methods).decode()
        raise error
    return route
