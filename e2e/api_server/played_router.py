"""A router as the operator process sees it: a ready pod in the release namespace, and a gRPC server at its address.

What it tells is the Fleet's, which plays the routers of the other tests too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Self

import grpc

from e2e.api_server.played_cluster import MOMENT, Fleet
from shoal_api.kube import MERGE_PATCH
from shoal_api.names import LABEL_ROLE, PORT_ROUTER_GRPC, ROLE_ROUTER
from shoal_api.router_state_pb2 import ObserveRequest, State
from shoal_api.router_state_pb2_grpc import RouterStateServicer, add_RouterStateServicer_to_server
from shoal_operator.cluster import path_of

SPEAKS_EVERY_S = 0.1


class PlayedRouter(RouterStateServicer):
    """Use as an async context manager; `host` is an address of this machine that nobody else uses."""

    def __init__(self, fleet: Fleet, host: str) -> None:
        self._fleet = fleet
        self._host = host

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        add_RouterStateServicer_to_server(self, self._server)
        assert self._server.add_insecure_port(f"{self._host}:{PORT_ROUTER_GRPC}")
        await self._server.start()
        await self._announce()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def Observe(  # noqa: N802 - gRPC's name
        self, request: ObserveRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[State]:
        """The fleet's state, again and again."""
        sequence = 0
        while True:
            sequence += 1
            (state,) = self._fleet.fresh()
            state.sequence = sequence
            yield state
            await asyncio.sleep(SPEAKS_EVERY_S)

    async def _announce(self) -> None:
        api, namespace = self._fleet.api, self._fleet.namespace
        metadata = {"name": "router", "namespace": namespace, "labels": {LABEL_ROLE: ROLE_ROUTER}}
        body = {"metadata": metadata, "spec": {"containers": [{"name": "router", "image": "r:1"}]}}
        await api.request("POST", path_of("Pod", namespace), body)
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": MOMENT}
        status = {"phase": "Running", "podIP": self._host, "conditions": [ready]}
        path = path_of("Pod", namespace, "router", "status")
        await api.request("PATCH", path, {"status": status}, content_type=MERGE_PATCH)
