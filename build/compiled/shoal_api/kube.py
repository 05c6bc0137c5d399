"""The way to a Kubernetes API server: plain objects in, plain objects out. Knows no kind and decides nothing.

Where the server is and how to prove who we are is lightkube's: KUBECONFIG, else the pod's service account
(whose token is read again when it has been rotated). Collections that are watched are mirror.py's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

import httpx2 as httpx
from lightkube.config.client_adapter import AsyncClient, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig
from lightkube.core.exceptions import ConfigError

Object = dict[str, Any]

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 30.0
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server refused, or could not be reached (status 0).

    `reason` is Kubernetes' own word, such as AlreadyExists; `body` the whole Status object.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        body: Object | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.body = body or {}
        self.retry_after_s = retry_after_s

    @property
    def not_found(self) -> bool:
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """Somebody else was first: the object exists already, has changed, or is another one by now."""
        return self.status == 409


class ApiServer:
    """One API server as one user. Use it as an async context manager."""

    def __init__(self, client: httpx.AsyncClient, namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    @classmethod
    def from_env(cls) -> Self:
        """KUBECONFIG if it is set, else the pod's service account. Raises ApiError with what to do."""
        try:
            config = KubeConfig.from_env().get()
        except ConfigError as error:
            fix = "set KUBECONFIG to a file with a current-context, or run in a pod with a service account"
            raise ApiError(0, "NotConfigured", f"{error}; {fix}") from error
        assert config is not None  # it is only for a default that is not given
        timeout = httpx.Timeout(REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        return cls(AsyncClient(config, ConnectionParams(timeout=timeout)), config.namespace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """One call, such as GET /api/v1/namespaces/x/pods/y. Raises ApiError."""
        try:
            response = await self._client.request(
                method,
                path,
                params=params,
                content=None if body is None else json.dumps(body),
                headers={"content-type": content_type},
            )
        except httpx.HTTPError as error:
            raise ApiError(
                0, "Unreachable", f"{method} {path}: {str(error) or type(error).__name__}"
            ) from error
        if response.is_error:
            raise _error(response.status_code, response.text, response.headers.get("retry-after"))
        found: Object = response.json()
        return found

    async def stream(
        self, path: str, *, params: Mapping[str, str], silence_s: float
    ) -> AsyncIterator[Object]:
        """The events of a watch, one JSON object a line; raises ApiError when nothing came for `silence_s`."""
        timeout = httpx.Timeout(silence_s, connect=CONNECT_TIMEOUT_S)
        try:
            async with self._client.stream("GET", path, params=params, timeout=timeout) as response:
                if response.is_error:
                    text = (await response.aread()).decode(errors="replace")
                    raise _error(response.status_code, text, response.headers.get("retry-after"))
                async for line in response.aiter_lines():
                    yield json.loads(line)
        except httpx.HTTPError as error:
            raise ApiError(0, "Unreachable", f"watch {path}: {str(error) or type(error).__name__}") from error


def _error(status: int, text: str, retry_after: str | None) -> ApiError:
    try:
        body = json.loads(text)
    except ValueError:
        body = {}
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    return ApiError(status, body.get("reason", ""), body.get("message", text[:500]), body, seconds)
