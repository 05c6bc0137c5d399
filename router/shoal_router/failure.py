"""How a replica can fail a request, what that says about the replica, and what the client is told if it is the end.

Whether another replica is tried is retry.py's.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from shoal_router.errors import BadReply, NoReplicaReady, ReplicaLost, ReplicaTimeout, RouterError
from shoal_router.standing import Outcome

_LAST_WORD: Final = re.compile(rb'"code"\s*:\s*"(draining|engine_unavailable)"')


class Failure(StrEnum):
    """How an attempt ended without a reply that could be passed on, or a resumable one in its middle."""

    CONNECT = "connect"  # no connection
    STALE = "stale"  # an idle connection had been closed by the replica
    LOST = "lost"  # the replica closed or reset the connection with the request on it
    TIMEOUT = "timeout"  # no first byte in time, or a long silence after it
    REFUSED = "refused"  # the replica is draining or loading, or its engine is gone and has not begun
    FULL = "full"  # 429: the replica has no room, and has not begun
    BAD_REPLY = "bad_reply"  # not HTTP


def error_of(failure: Failure, replica: str, cause: Exception | None) -> RouterError:
    """What the client is told when a failed attempt was the last one."""
    where = f"replica {replica}"
    if failure is Failure.REFUSED:
        return NoReplicaReady(f"{where} is draining or restarting and no other is ready; try again")
    if failure is Failure.TIMEOUT:
        return ReplicaTimeout(f"{where} did not begin to answer in time; try again later")
    if failure is Failure.BAD_REPLY:
        return BadReply(f"{where}: {cause}")
    if failure is Failure.CONNECT:
        return NoReplicaReady(
            f"{where} does not accept connections ({cause}) and no other is ready; try again"
        )
    return ReplicaLost(f"{where} died before it answered ({cause}); send the request again")


def lost_error(replica: str, cause: object) -> RouterError:
    """What the client is told when the replica died in the middle of an answer that stays unfinished."""
    return ReplicaLost(f"replica {replica} died while it was answering: {cause}; send the request again")


def outcome_of(failure: Failure) -> Outcome | None:
    """What a failure says about its replica; None when it says nothing."""
    if failure in (Failure.FULL, Failure.STALE):
        return None
    if failure is Failure.REFUSED:
        return Outcome.NOT_READY
    return Outcome.UNREACHABLE if failure is Failure.CONNECT else Outcome.HARD_FAULT


def read_last_word(text: bytes) -> Failure | None:
    """What it means when an engine reports this error for a request that it had begun; None: the request's own fault.

    Bare quotes cannot stand inside a JSON string, so that no message can look like a code.
    """
    found = _LAST_WORD.search(text)
    if found is None:
        return None
    return Failure.REFUSED if found[1] == b"draining" else Failure.LOST
