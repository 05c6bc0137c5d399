"""The way of each request: what engines work on becomes a prompt for the proxy, the router's own paths are answered.

Owns neither side. An error ends here, as the client's reply.
"""

from __future__ import annotations

import logging
from itertools import count
from typing import Final

from shoal_router.connection import ClientConnection
from shoal_router.errors import RouterError
from shoal_router.fields import read_fields
from shoal_router.local import Local
from shoal_router.models import ModelTable
from shoal_router.prompt import read_prompt
from shoal_router.proxy import Proxy
from shoal_router.request import Request
from shoal_router.routes import ROUTES

log: Final = logging.getLogger(__name__)


class Dispatch:
    """Takes whole requests; ids that it gives begin with `id_prefix`, which no other router has.

    `local` is to be set before the first one: it looks at the listener, which takes `answer`.
    """

    local: Local

    def __init__(self, id_prefix: str, models: ModelTable, proxy: Proxy) -> None:
        self._id = id_prefix.encode() + b"-%x"
        self._numbers = count()
        self._models = models
        self._proxy = proxy

    def answer(self, request: Request, client: ClientConnection) -> None:
        """The client gets a reply, now or later."""
        if not request.request_id:
            request.request_id = self._id % next(self._numbers)
        try:
            route = ROUTES.get(request.path)
            if route is None or route.work is None:
                answer = self.local.answer(request)
                client.reply(200, answer.body, answer.content_type, answer.headers)
            else:
                fields = read_fields(request.body)
                salt = request.key.cache_salt if request.key is not None else ""
                prompt = read_prompt(fields, self._models.resolve(fields.model), route.work, salt)
                self._proxy.begin(request, client, prompt)
        except RouterError as error:
            client.fail(error)
        except Exception:
            log.exception("bug while answering %s", request.path)
            client.fail(RouterError("the router failed; the log has the details under its request id"))
