"""An ApiServer whose calls can go wrong, for an operator that is played in this process: each call has a number.

Nothing is changed for whoever uses the plain ApiServer beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from shoal_api.kube import ApiError, ApiServer, Object


class Killed(BaseException):
    """The process ends here: nothing may catch this but the test."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the operator. `index` counts all calls from 1, `write` the writes; 0 is a call that writes nothing."""

    index: int
    write: int
    method: str
    path: str

    @property
    def kind(self) -> tuple[str, str]:
        """Verb and resource, without the names."""
        parts = self.path.split("/")
        at = parts.index("namespaces") + 2 if "namespaces" in parts else len(parts)
        return self.method, "/".join(part for n, part in enumerate(parts[at:]) if n != 1)


@dataclass(frozen=True, slots=True)
class Fault:
    """`error` is raised instead of the call, or after it if it is `committed`."""

    error: BaseException
    committed: bool


Faults = Callable[[Call], Fault | None]


class FaultyApi(ApiServer):
    """`faults` is asked before every call; `done` lists the calls that the API server carried out."""

    faults: Faults
    calls: int
    writes: int
    done: list[Call]

    @classmethod
    def over(cls, api: ApiServer, faults: Faults) -> Self:
        found = cls(api._client, api.namespace)
        found.faults, found.calls, found.writes, found.done = faults, 0, 0, []
        return found

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        writes = method != "GET" and "dryRun" not in (params or {})
        self.calls += 1
        self.writes += writes
        call = Call(self.calls, self.writes if writes else 0, method, path)
        fault = self.faults(call)
        if fault is not None and not fault.committed:
            raise fault.error
        reply: dict[str, Any] = {}
        try:
            reply = await super().request(method, path, body, params=params, content_type=content_type)
        except ApiError:
            if fault is None:
                raise
        else:
            self.done.append(call)
        if fault is not None:
            raise fault.error
        return reply
