"""An API server for tests: list and watch of whatever collections a test fills, as JSON over HTTP on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2 as httpx

from shoal_api import names
from shoal_api.kube import ApiServer

Object = dict[str, Any]
PODS = "/api/v1/pods"
DEPLOYMENTS = f"/apis/{names.API_VERSION}/{names.PLURAL}"


class Cluster:
    """Objects by collection and key. A path with /namespaces/N is the part of its collection in N."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Object]] = {PODS: {}, DEPLOYMENTS: {}}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.available = True
        self._version = 0
        self._log: list[tuple[str, str, Object]] = []
        self._moved = asyncio.Event()

    def put(self, collection: str, found: Object) -> None:
        key = f"{found['metadata']['namespace']}/{found['metadata']['name']}"
        known = key in self.objects[collection]
        self._record(collection, "MODIFIED" if known else "ADDED", found)
        self.objects[collection][key] = self._log[-1][2]

    def remove(self, collection: str, key: str) -> None:
        self._record(collection, "DELETED", self.objects[collection].pop(key))

    def _record(self, collection: str, kind: str, found: Object) -> None:
        self._version += 1
        stamped = {**found, "metadata": {**found["metadata"], "resourceVersion": str(self._version)}}
        self._log.append((collection, kind, stamped))
        self._moved.set()
        self._moved = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                while await reader.readline() not in (b"\r\n", b""):
                    pass
                parts = urlsplit(line.split()[1].decode())
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                self.asked.append((parts.path, query))
                if not self.available:
                    writer.write(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 2\r\n\r\n{}")
                elif "watch" in query:
                    await self._watch(parts.path, query, writer)
                else:
                    self._list(parts.path, query, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _list(self, path: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        found = [
            each
            for collection, objects in self.objects.items()
            for each in objects.values()
            if _within(path, collection, each) and _selected(query, each)
        ]
        body = json.dumps({"items": found, "metadata": {"resourceVersion": str(self._version)}}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async def _watch(self, path: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        at = int(query["resourceVersion"])
        while True:
            moved = self._moved
            for collection, kind, each in self._log[at:]:
                if _within(path, collection, each) and _selected(query, each):
                    line = json.dumps({"type": kind, "object": each}).encode() + b"\n"
                    writer.write(b"%x\r\n%b\r\n" % (len(line), line))
            at = len(self._log)
            await writer.drain()
            await moved.wait()


def _within(path: str, collection: str, found: Object) -> bool:
    prefix, _, plural = collection.rpartition("/")
    namespaced = f"{prefix}/namespaces/{found['metadata']['namespace']}/{plural}"
    return path in (collection, namespaced)


def _selected(query: dict[str, str], found: Object) -> bool:
    labels = found["metadata"].get("labels", {})
    wanted = query.get("labelSelector", "")
    return all(labels.get(k) == v for k, v in (term.split("=") for term in wanted.split(",") if term))


@asynccontextmanager
async def serving(cluster: Cluster) -> AsyncIterator[ApiServer]:
    """The cluster behind a real socket, and a way to it in namespace `default`."""
    server = await asyncio.start_server(cluster.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with ApiServer(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}"), "default") as api:
        yield api
    server.close()


def pod(name: str, *, namespace: str = "default", ip: str = "127.0.0.1", port: int = 1) -> Object:
    """A running engine pod of LLMDeployment `m`."""
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "labels": {names.LABEL_ROLE: names.ROLE_ENGINE, names.LABEL_DEPLOYMENT: "m"},
            "annotations": {},
        },
        "spec": {"containers": [{"name": "engine", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"podIP": ip, "phase": "Running"},
    }


def llm(
    name: str, *, namespace: str = "default", labels: dict[str, str] | None = None, **spec: Any
) -> Object:
    """An LLMDeployment as the API server returns it."""
    metadata = {"name": name, "namespace": namespace, "labels": labels or {}, "uid": f"uid-{name}"}
    base = {"model": {"uri": "file:///models/m"}, "resources": {"acceleratorCount": 0}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": metadata,
        "spec": {**base, **spec},
    }
