"""Choose the replica of one request: pure arithmetic on frozen values, no sockets, no clock, no state.

The cost of a replica, in prompt tokens (routers.md section 7):

    cost = recompute * uncached + queued + in_flight_tokens * in_flight + seat_tokens * standing

`uncached` is what this request would have to compute there, `queued` what others still have to before it, and
`standing` the requests, this one included, that find no seat in the engine's batch: it is full, or its KV cache
is. A replica with far more requests than the mean gets no credit for its cache, so that a hot prefix spreads
before it piles up. What the cheapest does not hold goes to its home among the near-cheapest, found by rendezvous
hashing of the first block that is missing there: any number of routers agree on it. A prefix that comes again and is
held by nobody useful is given more room to reach its home: where caches are too small for all prefixes, or several
routers choose at once, copies all over the place would push one another out.

Prices follow from the engine's own step times, base_s + prefill_token_s * tokens + sequence_s * sequences. A request
that runs lengthens a step by sequence_s for each token that it still generates, LEFT_TOKENS as a rule, so

    in_flight_tokens = LEFT_TOKENS * sequence_s / prefill_token_s

One that waits for a seat waits for the next of `seats` running requests to end, and they end one by one within
the LEFT_TOKENS steps that they have left, so

    seat_tokens = LEFT_TOKENS * (base_s / seats + sequence_s) / prefill_token_s

Both are bounded: a wrong measurement may skew the choice but not turn it into round robin or pure affinity.
`recompute` follows from no step time. It is above 1 because a prompt computed twice takes time from others too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Self

import msgspec

_MASK: Final = (1 << 64) - 1
LEFT_TOKENS: Final = 64  # tokens that a request in flight has yet to generate, as a rule
LEAST_IN_FLIGHT_TOKENS: Final = 16.0
MOST_IN_FLIGHT_TOKENS: Final = 256.0
MOST_SEAT_TOKENS: Final = 512.0


class Prices(msgspec.Struct, frozen=True):
    """What the engines of a model make of a request, in prompt tokens."""

    in_flight_tokens: float = 64.0
    seat_tokens: float = 384.0

    @classmethod
    def derived(cls, base_s: float, prefill_token_s: float, sequence_s: float, seats: int) -> Self | None:
        """The prices at these step times; None when they are no times or the engine's seats are unknown."""
        if not (prefill_token_s > 0 and base_s >= 0 and sequence_s >= 0 and seats > 0):
            return None
        in_flight = LEFT_TOKENS * sequence_s / prefill_token_s
        seat = LEFT_TOKENS * (base_s / seats + sequence_s) / prefill_token_s
        in_flight = min(max(in_flight, LEAST_IN_FLIGHT_TOKENS), MOST_IN_FLIGHT_TOKENS)
        return cls(in_flight, min(seat, MOST_SEAT_TOKENS))

    def moved(self, to: Prices, share: float) -> Prices:
        """The point at `share` of the way to others."""
        return Prices(
            self.in_flight_tokens + share * (to.in_flight_tokens - self.in_flight_tokens),
            self.seat_tokens + share * (to.seat_tokens - self.seat_tokens),
        )


DEFAULT_PRICES: Final = Prices()


@dataclass(frozen=True, slots=True)
class Weights:
    """What things cost, in prompt tokens; defaults are those of RouterOptions."""

    recompute: float = 2.0
    in_flight_tokens: float | None = None  # None takes what the engines' step times say
    mean_load: float = (
        1.25  # requests in flight above which a cache gives no credit, as a multiple of the mean
    )
    spare_requests: float = (
        16.0  # requests in flight up to which it always does: few requests are always uneven
    )
    near_requests: float = 2.0  # replicas this close to the cheapest, in requests, count as equally cheap
    returning: float = 0.5  # or, for a prefix that comes again, this close as a share of its own cost


class Candidate:
    """One routable replica as the policy sees it; token counts are estimates from prompt bytes.

    A plain class: there is one for each replica and request, and compiled it is the quickest to make and to read.
    """

    __slots__ = ("cached", "drawn", "identity", "in_flight", "queued", "seats")

    def __init__(
        self,
        identity: int,
        cached: float,
        queued: float,
        in_flight: float,
        seats: float = inf,
        drawn: bool = False,
    ) -> None:
        self.identity: Final = identity  # 64-bit hash of the replica's name, the same in every router
        # Leading prompt tokens of this request believed to be in the replica's cache.
        self.cached: Final = cached
        self.queued: Final = queued  # uncached prompt tokens of requests sent there without a first byte yet
        self.in_flight: Final = in_flight  # requests sent there that have not ended
        self.seats: Final = seats  # requests that it computes at once
        self.drawn: Final = drawn  # at random, from very many: no prefix has its home there


class Prefix:
    """The beginning of a prompt, for which replicas are homes."""

    __slots__ = ("block_tokens", "chain", "home_block", "returning")

    def __init__(
        self, chain: Sequence[int], block_tokens: float, home_block: int = 0, returning: bool = False
    ) -> None:
        self.chain: Final = chain  # hashes of its blocks, at least one
        self.block_tokens: Final = block_tokens
        self.home_block: Final = home_block  # number of the block whose hash has the home when less is cached
        self.returning: Final = returning  # the prompt's start has been asked for before

    def home(self, cached: float) -> int:
        """Hash of the first block that a replica with so many cached tokens lacks."""
        at = max(round(cached / self.block_tokens), self.home_block)
        return self.chain[min(at, len(self.chain) - 1)]


def choose(
    prompt: float,
    candidates: Sequence[Candidate],
    weights: Weights,
    prices: Prices,
    prefix: Prefix | None,
    pick: Callable[[int], int],
    mean_in_flight: float | None = None,
) -> int:
    """Index of the best of `candidates` (not empty) for `prompt` tokens.

    `prefix` is None for requests that no cache helps; `pick(n)` draws from range(n) and breaks ties.
    `mean_in_flight` is that of all replicas when the candidates are only some of them.
    """
    costs = costs_of(prompt, candidates, weights, prices, mean_in_flight)
    least = min(costs)
    if prefix is None:
        near = [i for i, cost in enumerate(costs) if cost == least]
        return near[0] if len(near) == 1 else near[pick(len(near))]
    best = costs.index(least)
    s = weights.in_flight_tokens
    if s is None:
        s = prices.in_flight_tokens
    enough, limit = candidates[best].cached, least + weights.near_requests * s
    near = [i for i, c in enumerate(candidates) if costs[i] <= limit and c.cached >= enough]
    if prefix.returning and not enough:
        limit = least + weights.returning * weights.recompute * prompt
        bound = _bound(candidates, weights, mean_in_flight)
        near += [i for i, c in enumerate(candidates) if costs[i] <= limit and c.in_flight <= bound]
    if len(near) == 1:
        return best
    home = prefix.home(enough)
    return max(near, key=lambda i: 0 if candidates[i].drawn else affinity(home, candidates[i].identity))


def costs_of(
    prompt: float,
    candidates: Sequence[Candidate],
    weights: Weights,
    prices: Prices,
    mean_in_flight: float | None = None,
) -> list[float]:
    """The cost of each candidate in prompt tokens."""
    s, w = weights.in_flight_tokens, weights.recompute
    if s is None:
        s = prices.in_flight_tokens
    bound = _bound(candidates, weights, mean_in_flight)
    costs = []
    for c in candidates:
        credit = c.cached if c.in_flight <= bound else 0.0
        cost = c.queued + s * c.in_flight + w * (prompt - credit)
        if c.in_flight >= c.seats:
            cost += prices.seat_tokens * (c.in_flight + 1.0 - c.seats)
        costs.append(cost)
    return costs


def _bound(candidates: Sequence[Candidate], weights: Weights, mean_in_flight: float | None) -> float:
    """Requests in flight up to which a replica gets more for its cache's sake, or because it is a home."""
    if mean_in_flight is None:
        in_flight = 0.0
        for c in candidates:
            in_flight += c.in_flight
        mean_in_flight = in_flight / len(candidates)
    return max(weights.mean_load * mean_in_flight, weights.spare_requests)


def affinity(prefix: int, identity: int) -> int:
    """Rendezvous weight of a replica for a prefix: a 64-bit mix (the finaliser of splitmix64) of both."""
    x = (prefix ^ identity) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
