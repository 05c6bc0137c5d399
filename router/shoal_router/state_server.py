"""Tells the operator what this router sees, over gRPC. Reads the router, changes nothing.

All observers get the same states, at most ten a second; one that is slow misses some and gets the newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

import grpc

from shoal_api import router_state_pb2 as pb
from shoal_api import router_state_pb2_grpc as rpc
from shoal_api.grpc_port import bind
from shoal_router.app import Router
from shoal_router.discovery import Deployment
from shoal_router.endpoints import Endpoint
from shoal_router.standing import State

log = logging.getLogger(__name__)

SHORTEST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 1.5  # below the promised 2 s, so that a late loop does not break the promise
STOP_GRACE_S: Final = 1.0

STANDINGS: Final = {
    State.ABSENT: pb.STANDING_NOT_READY,
    State.HEALTHY: pb.STANDING_ROUTABLE,
    State.HALF_OPEN: pb.STANDING_ROUTABLE,
    State.SUSPECT: pb.STANDING_SUSPECT,
}


class StateServer(rpc.RouterStateServicer):
    """`name` is the router's pod. Start it after the router and stop it after the router's drain."""

    def __init__(self, router: Router, name: str, now: Callable[[], float]) -> None:
        self._router = router
        self._name = name
        self._now = now
        self._server: grpc.aio.Server | None = None
        self._pulse: asyncio.Task[None] | None = None
        self._state = pb.State()
        self._built_s = 0.0
        self._news = asyncio.Event()
        self._observers = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError when the address cannot be had."""
        server = self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        rpc.add_RouterStateServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        bound = bind(server, host, port)
        await server.start()
        self._pulse = asyncio.get_running_loop().create_task(self._run())
        return bound

    async def stop(self) -> None:
        """End all streams."""
        if self._pulse is not None:
            self._pulse.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pulse
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)

    async def Observe(  # noqa: N802 - the name is the protocol's
        self, request: pb.ObserveRequest, context: object
    ) -> AsyncIterator[pb.State]:
        """One observer's stream, until it leaves."""
        log.info("%s observes this router", request.observer or "somebody")
        self._observers += 1
        try:
            self._publish(self._build())
            while True:
                news = self._news
                yield self._state
                await news.wait()
        finally:
            self._observers -= 1

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SHORTEST_PAUSE_S)
            if not self._observers:
                continue
            try:
                state = self._build()
                if _facts(state) != _facts(self._state) or self._now() - self._built_s >= LONGEST_PAUSE_S:
                    self._publish(state)
            except Exception:
                log.exception("bug while telling the router's state")

    def _publish(self, state: pb.State) -> None:
        state.sequence = self._state.sequence + 1
        self._state = state
        self._built_s = self._now()
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _build(self) -> pb.State:
        router = self._router
        deployments = router.discovery.deployments
        sizes = {(each.namespace, each.name): each.max_num_seqs for each in deployments}
        endpoints = [*router.endpoints, *router.endpoints.leaving]
        return pb.State(
            router=self._name,
            synced=router.discovery.synced is not False,
            draining=router.draining,
            endpoints=[
                self._endpoint(each, sizes.get((each.address.namespace, each.address.deployment), 0))
                for each in endpoints
            ],
            models=[self._model(each) for each in deployments],
        )

    def _endpoint(self, endpoint: Endpoint, declared: int) -> pb.Endpoint:
        report, address = endpoint.report, endpoint.address
        # One that has left the watch gets nothing new either.
        closed = endpoint.cordoned or endpoint.removed
        return pb.Endpoint(
            namespace=address.namespace,
            pod=address.name,
            uid=address.uid,
            standing=pb.STANDING_CORDONED if closed else STANDINGS[endpoint.state],
            in_flight=endpoint.in_flight,
            running=report.running,
            waiting=report.waiting,
            kv_usage=report.kv_usage,
            max_num_seqs=report.max_num_seqs or declared,
            report_age_s=-1.0 if endpoint.reported_s is None else self._now() - endpoint.reported_s,
        )

    def _model(self, deployment: Deployment) -> pb.Model:
        arrivals, held, idle_s = self._router.demand.of(deployment.models)
        return pb.Model(
            namespace=deployment.namespace,
            deployment=deployment.name,
            arrivals=arrivals,
            held=held,
            idle_s=idle_s,
        )


def _facts(state: pb.State) -> bytes:
    """`state` without what changes by itself: the clock's part is worth no message of its own."""
    facts = pb.State()
    facts.CopyFrom(state)
    facts.sequence = 0
    for endpoint in facts.endpoints:
        endpoint.report_age_s = 0.0
    for model in facts.models:
        model.idle_s = 0.0
    return facts.SerializeToString(deterministic=True)
