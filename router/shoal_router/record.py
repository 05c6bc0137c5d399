"""What is worth telling of one request once it is over. Sends and decides nothing: journal.py does.

Times are those of its journal's clock. A request has a record only while somebody wants to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shoal_api.names import HEADER_TRACEPARENT
from shoal_api.trace_context import TraceContext
from shoal_router.request import Request
from shoal_router.usage import Usage

if TYPE_CHECKING:
    from shoal_router.journal import Journal

_TRACE_LINE: Final = HEADER_TRACEPARENT.encode() + b": %b\r\n"


class Attempt:
    """One try at one replica."""

    __slots__ = ("began_s", "context", "ended_s", "failure", "first_byte_s", "replica", "resumes", "status")

    def __init__(self, replica: str, began_s: float, resumes: bool, context: TraceContext | None) -> None:
        self.replica = replica
        self.began_s = began_s
        self.ended_s = 0.0  # 0 while it lasts
        self.first_byte_s = 0.0  # 0 while there is none
        self.resumes = resumes  # goes on with an answer that another replica began
        self.context = context  # of its span; None when nobody traces
        self.status = 0
        self.failure = ""


class Record:
    """One request, from its last byte to the end of its reply. `end` hands it to its journal."""

    __slots__ = (
        "_journal",
        "attempts",
        "began_s",
        "context",
        "model",
        "parent_id",
        "request",
        "status",
        "stream",
        "usage",
    )

    def __init__(
        self, journal: Journal, request: Request | None, model: str = "", *, stream: bool = False
    ) -> None:
        self._journal = journal
        self.request = request
        self.model = model
        self.stream = stream
        self.began_s = journal.now()
        self.attempts: list[Attempt] = []
        self.status = 0
        self.usage: Usage | None = None
        self.context: TraceContext | None = None  # of its span; None when nobody traces
        self.parent_id = 0  # of the client's span

    def attempt(self, replica: str) -> bytes:
        """It is sent to a replica. Returns the header line that tells the engine of its trace."""
        context = None if self.context is None else self._journal.child(self.context)
        resumes = bool(self.first_byte_s)
        self.attempts.append(Attempt(replica, self._journal.now(), resumes, context))
        if context is not None:
            return _TRACE_LINE % context.traceparent.encode()
        return self.request.head.trace_line if self.request is not None else b""

    def first_byte(self, status: int) -> None:
        """The reply of the attempt under way has begun."""
        attempt = self.attempts[-1]
        attempt.first_byte_s, attempt.status = self._journal.now(), status

    def attempt_ended(self, failure: str) -> None:
        """The attempt under way is over; `failure` says why it came to nothing."""
        attempt = self.attempts[-1]
        attempt.ended_s, attempt.failure = self._journal.now(), failure

    def end(self, status: int, usage: Usage | None = None) -> None:
        """It is over, in whatever way."""
        self.status, self.usage = status, usage
        self._journal.ended(self)

    @property
    def first_byte_s(self) -> float:
        """When the reply began; 0 when it did not."""
        return next((each.first_byte_s for each in self.attempts if each.first_byte_s), 0.0)

    @property
    def replica(self) -> str:
        """The last one that had the request."""
        return self.attempts[-1].replica if self.attempts else ""

    @property
    def retries(self) -> int:
        """Attempts after the first that did not go on with an answer."""
        return max(0, sum(not each.resumes for each in self.attempts) - 1)

    @property
    def resumes(self) -> int:
        """Times that another replica was asked to go on."""
        return sum(each.resumes for each in self.attempts)
