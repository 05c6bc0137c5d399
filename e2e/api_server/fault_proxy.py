"""An HTTP proxy before the API server, for an operator that is a real process: it lists the writes and kills at one.

Plain HTTP to the operator, by a kubeconfig that points here; HTTPS and the administrator's token to the API server.
Leases are not counted: when they are written depends on the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Self

import aiohttp
import yaml
from aiohttp import web

NOT_COUNTED = ("/leases", "/events")
DROPPED = ("host", "content-length", "transfer-encoding", "connection", "accept-encoding", "authorization")


class FaultProxy:
    """Use as an async context manager. `kill` is called around the first write of kind `at`; its reply never comes.

    By kind and not by number: in which order an operator writes to several objects depends on its watches' timing.
    """

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self._upstream = config["clusters"][0]["cluster"]["server"]
        self._token = config["users"][0]["user"]["token"]
        self._config = config
        self.kubeconfig = folder / "kubeconfig-of-proxy"
        self.writes: list[str] = []
        self.at = ""
        self.committed = False
        self.kill: Callable[[], None] = lambda: None
        self.killed = asyncio.Event()
        self._watches: list[web.Request] = []

    async def __aenter__(self) -> Self:
        context = ssl._create_unverified_context()
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        self._client = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self._config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{port}"}
        self.kubeconfig.write_text(yaml.safe_dump(self._config))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._runner.cleanup()

    def break_watches(self) -> None:
        """End every watch in the middle, as a load balancer does that restarts."""
        for request in self._watches:
            _cut(request)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        fatal = self._listed(request) and self.at and kind_of(self.writes[-1]) == self.at
        if fatal and not self.committed:
            return self._end(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED}
        headers["authorization"] = f"Bearer {self._token}"
        url = self._upstream + request.raw_path
        async with self._client.request(
            request.method, url, data=body or None, headers=headers, skip_auto_headers=("content-type",)
        ) as reply:
            if fatal:
                await reply.read()
                return self._end(request)
            return await self._pass_on(request, reply)

    async def _pass_on(self, request: web.Request, reply: aiohttp.ClientResponse) -> web.StreamResponse:
        headers = {name: value for name, value in reply.headers.items() if name.lower() not in DROPPED}
        answer = web.StreamResponse(status=reply.status, headers=headers)
        if "watch" in request.query:
            self._watches.append(request)
        with contextlib.suppress(ConnectionError):  # the operator has gone, or its watch was broken
            await answer.prepare(request)
            async for chunk in reply.content.iter_any():
                await answer.write(chunk)
            await answer.write_eof()
        if request in self._watches:
            self._watches.remove(request)
        return answer

    def _listed(self, request: web.Request) -> bool:
        """Whether it is a write that counts; if so it is the last of `writes`."""
        reads = request.method == "GET" or "dryRun" in request.query
        if reads or any(each in request.path for each in NOT_COUNTED):
            return False
        self.writes.append(f"{request.method} {request.path}")
        return True

    def _end(self, request: web.Request) -> web.StreamResponse:
        self.at = ""
        self.kill()
        self.killed.set()
        _cut(request)
        return web.Response()


def kind_of(write: str) -> str:
    """`POST pods` of `POST /api/v1/namespaces/n/pods`; of a subresource the kind of its object."""
    method, path = write.split()
    return f"{method} {path.split('/')[5] if path.startswith('/api/') else path.split('/')[6]}"


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
