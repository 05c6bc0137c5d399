"""How an attempt can fail before anything was passed on, and what the client is told if it was the last one.

Whether it is repeated is retry.py's.
"""

from __future__ import annotations

from enum import StrEnum

from shoal_router.errors import BadReply, NoReplicaReady, ReplicaLost, ReplicaTimeout, RouterError


class Failure(StrEnum):
    """How an attempt ended without a reply that could be passed on."""

    CONNECT = "connect"  # no connection
    STALE = "stale"  # an idle connection had been closed by the replica
    LOST = "lost"  # the replica closed or reset the connection with the request on it
    TIMEOUT = "timeout"  # no first byte in time
    REFUSED = "refused"  # 503: the replica is draining or its engine is gone, and has not begun
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
