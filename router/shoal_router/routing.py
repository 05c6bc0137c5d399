"""How the requests of one model are spread: the routing options of a manifest or of the router, ready for use.

Chooses nothing; policy.py and placer.py do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Self

from shoal_api.request_prefix import BLOCK_BYTES
from shoal_api.routing_options import RoutingOptions
from shoal_router.policy import Weights

LONGEST_RETRY_AFTER_S: Final = 60


@dataclass(frozen=True, slots=True)
class Routing:
    """Defaults are those of RoutingOptions."""

    weights: Weights = field(default_factory=Weights)
    home_block: int = 0  # number of the block whose hash has a home
    prefer_cached: bool = True  # whether caches count
    queue_s: float = 5.0  # how long a request waits while every replica is full
    max_queued: int = 1024  # requests that may wait so
    look_ahead: float = 0.12  # of the requests that a replica computes at once, how many may wait in it
    resume: bool = True  # whether a stream whose replica dies goes on at another one
    resume_wait_s: float = 60.0  # how long it waits for one

    @classmethod
    def from_options(cls, options: RoutingOptions) -> Self:
        prefix = options.prefix_hash
        return cls(
            Weights(
                recompute=prefix.recompute_weight,
                in_flight_tokens=prefix.in_flight_tokens,
                mean_load=prefix.mean_load_percent / 100,
            ),
            home_block=max(0, prefix.prefix_chars // BLOCK_BYTES - 1),
            prefer_cached=options.strategy == "PrefixHash",
            queue_s=options.overload.queue_s,
            max_queued=options.overload.max_queued,
            look_ahead=options.overload.look_ahead_percent / 100,
            resume=options.resume,
            resume_wait_s=options.resume_wait_s,
        )

    @property
    def retry_after_s(self) -> int:
        """When a refused client may ask again: the queue of now is over by then."""
        return min(max(1, math.ceil(self.queue_s)), LONGEST_RETRY_AFTER_S)
