"""Choose the replica of one request: pure arithmetic on frozen values, no sockets, no clock, no state.

The cost of a replica, in prompt tokens (routers.md section 7):

    cost = recompute * uncached + queued + in_flight_tokens * in_flight

`uncached` is what this request would have to compute there, `queued` what others still have to before it. A
replica with far more requests than the mean gets no credit for its cache, so that a hot prefix spreads before
it piles up. A prefix that nobody holds goes to its home among the near-cheapest, found by rendezvous hashing:
any number of routers agree on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Weights:
    """What things cost, in prompt tokens; defaults are those of RouterOptions."""

    recompute: float = 2.0
    in_flight_tokens: float = 64.0
    mean_load: float = (
        1.25  # requests in flight above which a cache gives no credit, as a multiple of the mean
    )
    spare_requests: float = (
        16.0  # requests in flight up to which it always does: few requests are always uneven
    )
    near_requests: float = 2.0  # replicas this close to the cheapest, in requests, count as equally cheap


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One routable replica as the policy sees it; token counts are estimates from prompt bytes."""

    identity: int  # 64-bit hash of the replica's name, the same in every router
    cached: float  # leading prompt tokens of this request believed to be in the replica's cache
    queued: float  # uncached prompt tokens of requests sent there that have not begun to answer
    in_flight: float  # requests sent there that have not ended


def choose(
    prompt: float,
    candidates: Sequence[Candidate],
    weights: Weights,
    home: int | None,
    pick: Callable[[int], int],
) -> int:
    """Index of the best of `candidates` (not empty) for `prompt` tokens.

    `home` is the hash of the prefix whose home matters, None for requests that no cache helps;
    `pick(n)` draws from range(n) and breaks ties.
    """
    s, w = weights.in_flight_tokens, weights.recompute
    in_flight = 0.0
    for c in candidates:
        in_flight += c.in_flight
    bound = max(weights.mean_load * in_flight / len(candidates), weights.spare_requests)
    costs = []
    for c in candidates:
        credit = c.cached if c.in_flight <= bound else 0.0
        costs.append(c.queued + s * c.in_flight + w * (prompt - credit))
    least = min(costs)
    if home is None:
        near = [i for i, cost in enumerate(costs) if cost == least]
        return near[0] if len(near) == 1 else near[pick(len(near))]
    best = costs.index(least)
    enough, limit = candidates[best].cached, least + weights.near_requests * s
    winner, highest = best, -1
    for i, c in enumerate(candidates):
        if costs[i] <= limit and c.cached >= enough:
            weight = affinity(home, c.identity)
            if weight > highest:
                winner, highest = i, weight
    return winner


def affinity(prefix: int, identity: int) -> int:
    """Rendezvous weight of a replica for a prefix: a 64-bit mix (the finaliser of splitmix64) of both."""
    x = (prefix ^ identity) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
