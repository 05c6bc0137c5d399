"""Requests that are suspected of killing replicas: known by a digest, refused for a while. Keeps no body.

A neighbour of the true culprit may be suspected with it when both were aboard twice; it is served again after the
same while.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final

from shoal_router.errors import RequestQuarantined
from shoal_router.request import Request

log = logging.getLogger(__name__)

QUARANTINE_S: Final = 600.0
MAX_SUSPECTS: Final = 4096  # the oldest are let go first
SUSPICIOUS_DEATHS: Final = 2  # of replicas with one request on board, before it got a token there
CERTAIN_DEATHS: Final = 4  # whatever else dies
LATELY_S: Final = 60.0
ONE_DEATH_S: Final = 1.0  # all requests of a replica that died hear of it within this time


class Quarantine:
    """All suspects of one router; times are on the caller's clock. `total` counts those that were ever put in."""

    def __init__(self) -> None:
        self.total = 0
        self._died_s: dict[Hashable, float] = {}  # when each replica last did, the latest last
        self._deaths_s: deque[float] = deque()  # of any replica, lately
        self._until_s: OrderedDict[bytes, float] = OrderedDict()  # by digest, the first to be let go first

    def __len__(self) -> int:
        return len(self._until_s)

    def died(self, replica: Hashable, now: float) -> None:
        """A replica died, says one of the requests that it had."""
        if now - self._died_s.pop(replica, -ONE_DEATH_S) >= ONE_DEATH_S:
            self._deaths_s.append(now)
        self._died_s[replica] = now
        while self._deaths_s[0] < now - LATELY_S:
            self._deaths_s.popleft()
        while next(iter(self._died_s.values())) < now - LATELY_S:
            del self._died_s[next(iter(self._died_s))]

    def suspects(self, deaths: int) -> bool:
        """Whether replicas may be dying of a request that was on board at so many deaths, without a token there.

        Where replicas die of something else all the time, that it was there proves little.
        """
        if deaths < SUSPICIOUS_DEATHS:
            return False
        return 2 * deaths >= len(self._deaths_s) or deaths >= CERTAIN_DEATHS

    def put(self, request: Request, now: float) -> RequestQuarantined:
        """Refuse this request from now on. Returns what its client is told."""
        digest = _digest(request)
        self._until_s[digest] = now + QUARANTINE_S
        self._until_s.move_to_end(digest)
        if len(self._until_s) > MAX_SUSPECTS:
            self._until_s.popitem(last=False)
        self.total += 1
        log.warning(
            "request %s is quarantined for %g s: replicas died with it before it got a token; its sha256 is %s",
            request.request_id.decode("latin-1"),
            QUARANTINE_S,
            digest.hex(),
        )
        return _refusal(QUARANTINE_S)

    def check(self, request: Request, now: float) -> None:
        """Raises RequestQuarantined."""
        suspects = self._until_s
        while suspects and next(iter(suspects.values())) <= now:
            suspects.popitem(last=False)
        if suspects and (until_s := suspects.get(_digest(request))) is not None:
            raise _refusal(until_s - now)


def _digest(request: Request) -> bytes:
    return hashlib.sha256(request.path.encode() + b"\0" + request.body).digest()


def _refusal(left_s: float) -> RequestQuarantined:
    return RequestQuarantined(
        "replicas died while this request was with them, so it is not tried again for now; change the request, "
        f"or send it again after {left_s:.0f} s, and tell the operator of this service: the engines' logs have the cause"
    )
