"""One request on one replica, as placer.py has chosen and charged it. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shoal_router.decisions import Decision
from shoal_router.endpoints import Endpoint
from shoal_router.reported_cache import ReportedCache


class Placement:
    """One request on one replica, from choice to end."""

    __slots__ = (
        "believed_stamp",
        "cache",
        "cached_share",
        "chain",
        "chain_line",
        "claimed_from",
        "decision",
        "endpoint",
        "stamp",
        "uncached_tokens",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        stamp: int,
        uncached_tokens: float,
        cached_share: float,
        decision: Decision,
        believed_stamp: int = 0,
        cache: ReportedCache | None = None,
        chain: Sequence[int] = (),
        claimed_from: int = 0,
        chain_line: bytes = b"",
    ) -> None:
        self.endpoint: Final = endpoint
        self.stamp: Final = stamp  # grows from request to request
        self.uncached_tokens: Final = uncached_tokens
        self.cached_share: Final = cached_share  # of the prompt, as reported or believed
        self.decision: Final = decision  # what it came from
        # Last use of the deepest block believed cached; 0 when none can be contradicted.
        self.believed_stamp: Final = believed_stamp
        self.cache: Final = cache  # where the prompt's blocks are claimed
        self.chain: Final = chain  # of these blocks
        self.claimed_from: Final = claimed_from  # number of the first claimed one
        self.chain_line: Final = chain_line  # header line that tells the chain to an engine that reports

    def first_byte(self) -> None:
        """The prompt is computed."""
        self.endpoint.first_byte(self.uncached_tokens, self.stamp)

    def end(self) -> None:
        """The request is over, one way or another."""
        self.endpoint.discharge(self.uncached_tokens, self.stamp)
        if self.cache is not None:
            self.cache.release(self.chain, self.claimed_from)
