"""The router put together: owns all parts, starts and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import sys
from collections.abc import Iterable
from time import perf_counter
from typing import BinaryIO, Final

from shoal_api.request_prefix import BLOCK_BYTES
from shoal_api.spans import SpanSender
from shoal_router.access_log import AccessLog
from shoal_router.admission import Admission
from shoal_router.demand import Demand
from shoal_router.discovery import Address, Discovery
from shoal_router.dispatch import Dispatch
from shoal_router.endpoints import Endpoint, EndpointSet
from shoal_router.engine_link import EngineLinks, Open, watch
from shoal_router.gate import Gate
from shoal_router.health import Health
from shoal_router.journal import Journal
from shoal_router.listener import Listener
from shoal_router.local import Local
from shoal_router.metrics import Metrics
from shoal_router.models import ModelTable
from shoal_router.placer import Placer
from shoal_router.pool import Pool
from shoal_router.prefix_index import PrefixIndex
from shoal_router.prices import LearnedPrices
from shoal_router.proxy import Proxy
from shoal_router.settings import RouterSettings
from shoal_router.usage import AnswerTokens, BytesPerToken
from shoal_router.viewer import Viewer
from shoal_router.worker_metrics import WorkerMetrics

log = logging.getLogger(__name__)

BACKLOG: Final = 4096  # connections that may wait in the kernel while the loop is busy


class Router:
    """One router. Make it inside a running event loop, then `start`, then `stop`."""

    def __init__(
        self,
        settings: RouterSettings,
        discovery: Discovery,
        *,
        rng: random.Random,
        open_stream: Open = watch,
        sender: SpanSender | None = None,
        access_log_stream: BinaryIO | None = None,
        workers: WorkerMetrics | None = None,
    ) -> None:
        """`sender` takes traces when there are to be any; the access log goes to stdout unless it is said where."""
        self._settings = settings
        self.discovery = discovery
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False
        name = os.urandom(6).hex()
        now = self._loop.time
        self.endpoints = EndpointSet(self._make_pool)
        self.index = PrefixIndex()
        self.metrics = Metrics()
        self.demand = Demand(now)
        self._ratios = BytesPerToken()
        self._models = ModelTable(self.endpoints, settings.routing)
        self._health = Health(settings.health, self.endpoints, now=now, on_restart=self._forget)
        answers = AnswerTokens()
        self.gate = Gate(
            settings.api_keys,
            settings.api_keys_file,
            settings.engine_api_key,
            ratios=self._ratios,
            answers=answers,
            now=now,
            chance=rng.random,
        )
        prices = LearnedPrices()
        self._links = EngineLinks(
            self.endpoints,
            self.index,
            watcher=f"router {name}",
            now=now,
            observe=self._health.observe,
            learn=prices.learn,
            open_stream=open_stream,
        )
        placer = Placer(self._models, self.index, self._ratios, prices, rng.randrange)
        self._admission = Admission(
            self._models, self.demand, self.metrics, settings.max_held_bytes, now=now, chance=rng.random
        )
        self._proxy = Proxy(
            settings.proxy,
            placer,
            self.metrics,
            self.demand,
            self._admission,
            self.gate,
            answers,
            observe=self._health.observe,
            routing=self._models.routing,
            now=now,
        )
        dispatch = Dispatch(name, self._models, self._proxy)
        self._listener = Listener(
            settings.connection,
            vet=self.gate.vet,
            answer=dispatch.answer,
            count_error=self.metrics.count_error,
            now=now,
        )
        self._local = dispatch.local = Local(
            self.endpoints,
            self._models,
            self.index,
            self.metrics,
            self._listener,
            self._proxy,
            discovery,
            Viewer(self.endpoints, self._models, self.index, self.metrics, self._listener, self._proxy),
            workers,
        )
        self._sender = sender
        self._access_log_stream = access_log_stream
        self._access_log: AccessLog | None = None
        self.set_access_log(settings.access_log)
        self.endpoints.on_add.append(lambda endpoint: self.index.add(endpoint.slot, self._blocks(endpoint)))
        self.endpoints.on_remove.append(lambda endpoint: self.index.remove(endpoint.slot))
        self.endpoints.on_change.append(self._models.changed)
        self.endpoints.on_change.append(self._proxy.interrupted.changed)
        self.endpoints.on_change.append(self._admission.changed)
        self.endpoints.on_load.append(self._admission.changed)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def draining(self) -> bool:
        """Whether it takes no more connections."""
        return self._closed

    async def start(self) -> None:
        """Listen and look for replicas. Raises OSError for an address and KeyFileError for keys that cannot be had."""
        settings = self._settings
        self.gate.start()
        self._server = await self._loop.create_server(
            self._listener.make_connection,
            settings.host,
            settings.port,
            backlog=BACKLOG,
            reuse_port=settings.processes > 1 or None,
        )
        self._sweeper = self._loop.create_task(self._sweep())
        await self.discovery.start(self._reconcile)

    async def stop(self, drain_timeout_s: float) -> bool:
        """Let clients go elsewhere for `settings.drain_delay_s`, then let requests in progress end for at most so long.

        During the delay requests are served as ever: a cluster learns bit by bit that this router leaves. Returns
        whether all requests ended.
        """
        assert self._server is not None
        assert self._sweeper is not None
        self._listener.drain(self._settings.drain_delay_s)
        self._admission.close()
        await asyncio.sleep(self._settings.drain_delay_s)
        self._server.close()
        self._closed = True
        done = await self._drained(drain_timeout_s)
        if not done:
            log.warning("drain timeout: cutting %d requests", len(self._proxy.active))
            self._listener.abort()
        self._sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeper
        await self.gate.stop()
        await self.discovery.stop()
        await self._health.stop()
        await self._links.stop()
        self.set_access_log(False)
        self.endpoints.reconcile(())
        await asyncio.sleep(0)  # closed transports tell their protocols in the next turn of the loop
        return done

    @property
    def access_log(self) -> bool:
        """Whether it writes a line per request."""
        return self._access_log is not None

    def set_access_log(self, wanted: bool) -> None:
        """Begin or end the access log. A request is in it when it was on at its beginning."""
        if not wanted and self._access_log is not None:
            self._access_log.close()
            self._access_log = None
        elif wanted and self._access_log is None:
            self._access_log = AccessLog(self._access_log_stream or sys.stdout.buffer)
        journal = None
        if self._access_log is not None or self._sender is not None:
            journal = Journal(
                self._access_log, self._sender, perf_counter
            )  # uvloop counts whole milliseconds
        self._proxy.journal = self._listener.journal = journal

    async def _drained(self, timeout_s: float) -> bool:
        deadline = self._loop.time() + timeout_s
        while self._listener.connections and self._loop.time() < deadline:
            await asyncio.sleep(0.01)
        return not self._listener.connections

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_s)
            try:
                self._sweep_once()
            except Exception:
                log.exception("bug in the sweep of deadlines")

    def _sweep_once(self) -> None:
        self._listener.sweep()
        self._proxy.sweep()
        self._local.tell_workers()
        for endpoint in self.endpoints:
            endpoint.pool.sweep(self._loop.time())
            self.index.resize(endpoint.slot, self._blocks(endpoint))

    # Replicas

    def _reconcile(self, addresses: Iterable[Address]) -> None:
        self._models.set_deployments(self.discovery.deployments)
        self.endpoints.reconcile(addresses)

    def _make_pool(self, address: Address) -> Pool:
        return Pool(address, self._settings.connect_timeout_s)

    def _forget(self, endpoint: Endpoint) -> None:
        # One that pushes says itself what it holds.
        if not endpoint.removed and not endpoint.linked:
            self.index.forget(endpoint.slot)

    def _blocks(self, endpoint: Endpoint) -> int:
        """The endpoint's KV cache in blocks of prompt; several models behind one address share it."""
        models = endpoint.report.models
        per_token = self._ratios.of(models[0][0] if models else "")
        return max(1, round(endpoint.report.kv_tokens * per_token / BLOCK_BYTES))
