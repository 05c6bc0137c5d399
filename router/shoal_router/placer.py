"""Give a request a replica: puts model table, prefix index and policy together, and keeps the accounts.

Sends nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from time import time
from typing import Final

from shoal_api.request_prefix import BLOCK_BYTES
from shoal_router.chain_header import chain_line
from shoal_router.decisions import KEPT, Decision
from shoal_router.endpoints import Endpoint
from shoal_router.errors import NoReplicaReady
from shoal_router.models import ModelTable
from shoal_router.placement import Placement
from shoal_router.policy import Candidate, Prefix, Prices, choose
from shoal_router.prefix_index import PrefixIndex
from shoal_router.prices import LearnedPrices
from shoal_router.prompt import Prompt, Work
from shoal_router.recent_prefixes import RecentPrefixes
from shoal_router.routing import Routing
from shoal_router.shortlist import HOLDERS, MOST_SCORED, Fleet
from shoal_router.standing import State
from shoal_router.usage import BytesPerToken, Usage

# A belief is wrong when the engine had less cached than this below it: block sizes differ, and templates add
# tokens.
TOLERANCE_TOKENS: Final = 64
TOLERANCE_SHARE: Final = 0.1


class Placer:
    """Chooses replicas; `pick(n)` draws from range(n)."""

    def __init__(
        self,
        models: ModelTable,
        index: PrefixIndex,
        ratios: BytesPerToken,
        prices: LearnedPrices,
        pick: Callable[[int], int],
    ) -> None:
        self._models = models
        self._index = index
        self._ratios = ratios
        self._prices = prices
        self._pick = pick
        self._recent = RecentPrefixes()
        self._fleets: dict[str, Fleet] = {}  # of models with very many replicas
        self.decisions: deque[Decision] = deque(maxlen=KEPT)

    def prices(self, model: str) -> Prices:
        """What a request in flight costs at present."""
        return self._prices.of(model)

    def bytes_per_token(self, model: str) -> float:
        """As learned from what engines counted."""
        return self._ratios.of(model)

    def place(self, prompt: Prompt, tried: Collection[Endpoint], generated_tokens: int = 0) -> Placement:
        """Choose a replica that was not tried and charge it; tokens that another one has generated come on top.

        Raises ModelNotFound, NoReplicaReady or ReplicasFull.
        """
        model = prompt.model
        routing, prices = self._models.routing(model), self._prices.of(model)
        chain = prompt.chain if routing.prefer_cached else []
        endpoints, depths, drawn, mean = self._survey(prompt, chain, routing, tried)
        per_token = self._ratios.of(model)
        block_tokens, tokens = BLOCK_BYTES / per_token, prompt.content_bytes / per_token + generated_tokens
        prefix = self._prefix(chain, block_tokens, routing.home_block) if chain else None
        candidates = [
            Candidate(
                endpoint.identity,
                depths.get(endpoint.slot, 0) * block_tokens,
                endpoint.queued_tokens + endpoint.queued_elsewhere,
                endpoint.in_flight + endpoint.elsewhere,
                endpoint.seats,
                endpoint in drawn,
            )
            for endpoint in endpoints
        ]
        at = choose(tokens, candidates, routing.weights, prices, prefix, self._pick, mean)
        # Tokens are counted beside the engine's batch, which may be as full as it likes.
        ahead = routing.look_ahead
        if not endpoints[at].takes_more(ahead) and prompt.work is not Work.TOKENIZE:
            roomy = [i for i, each in enumerate(endpoints) if each.takes_more(ahead)]
            if not roomy:
                raise self._models.full(model)
            # Where it is cheapest it may queue: sent where there happens to be room, it would be computed anew.
            if not endpoints[at].accepts:
                left = [candidates[i] for i in roomy]
                at = roomy[choose(tokens, left, routing.weights, prices, prefix, self._pick, mean)]
        endpoint, cached = endpoints[at], candidates[at].cached
        decision = Decision(time(), model, tokens, endpoints, candidates, routing.weights, prices, at, mean)
        self.decisions.append(decision)
        return self._charge(endpoint, prompt, tokens - cached, depths.get(endpoint.slot, 0), decision)

    def _prefix(self, chain: list[int], block_tokens: float, home_block: int) -> Prefix:
        returning = self._recent.note(chain[min(home_block, len(chain) - 1)])
        return Prefix(chain, block_tokens, home_block, returning)

    def _survey(
        self, prompt: Prompt, chain: list[int], routing: Routing, tried: Collection[Endpoint]
    ) -> tuple[Sequence[Endpoint], dict[int, int], Collection[Endpoint], float | None]:
        """Replicas to choose from, how many blocks each slot holds; of very many, which are drawn, and the mean load."""
        routable = self._models.routable(prompt.model)
        if len(routable) <= MOST_SCORED:
            depths = self._index.match(chain) if chain else {}
            return self._eligible(prompt, routable, tried), depths, (), None
        fleet = self._fleet(prompt.model, routable)
        depths = self._index.deepest(chain, fleet.slots, HOLDERS, self._pick)
        listed, drawn = fleet.shortlist(depths, _home(chain, depths, routing) if chain else None, self._pick)
        if tried and all(endpoint in tried for endpoint in listed):
            listed = list(routable)
        return self._eligible(prompt, listed, tried), depths, drawn, fleet.mean_in_flight

    def _fleet(self, model: str, routable: Sequence[Endpoint]) -> Fleet:
        fleet = self._fleets.get(model)
        if fleet is None or fleet.endpoints is not routable:
            fleet = self._fleets[model] = Fleet(routable)
        return fleet

    def _eligible(
        self, prompt: Prompt, endpoints: Sequence[Endpoint], tried: Collection[Endpoint]
    ) -> Sequence[Endpoint]:
        if tried:
            endpoints = [endpoint for endpoint in endpoints if endpoint not in tried]
            if not endpoints:
                raise NoReplicaReady(
                    f"every ready replica of '{prompt.model}' failed this request; try again"
                )
        # One request at a time proves that a replica is back; if all are in that state, better several than
        # none.
        for endpoint in endpoints:
            if endpoint.standing.state is State.HALF_OPEN and endpoint.in_flight:
                break
        else:
            return endpoints
        proven = [e for e in endpoints if e.standing.state is not State.HALF_OPEN or e.in_flight == 0]
        return proven or endpoints

    def _charge(
        self, endpoint: Endpoint, prompt: Prompt, uncached: float, depth: int, decision: Decision
    ) -> Placement:
        share = depth * BLOCK_BYTES / prompt.content_bytes if depth else 0.0
        endpoint.tally.requests += 1
        reported = self._index.reported(endpoint.slot)
        if reported is not None:
            start, stamp = reported.claim(prompt.chain, depth), self._index.stamp()
            endpoint.charge(uncached, stamp)
            line = chain_line(prompt.content_bytes, prompt.chain)
            chain = prompt.chain
            return Placement(endpoint, stamp, uncached, share, decision, 0, reported, chain, start, line)
        believed = 0
        if depth:
            believed = self._index.last_use(endpoint.slot, prompt.chain[depth - 1])
            # What a request still waiting for its first byte will have computed may not be in the cache yet.
            oldest_waiting = next(iter(endpoint.waiting), None)
            if oldest_waiting is not None and believed >= oldest_waiting:
                believed = 0
        stamp = self._index.use(endpoint.slot, prompt.chain)
        endpoint.charge(uncached, stamp)
        return Placement(endpoint, stamp, uncached, share, decision, believed)

    def settle(self, placement: Placement, prompt: Prompt, usage: Usage) -> None:
        """Compare what was believed with what the engine says, and correct the index where it was wrong."""
        if not prompt.content_bytes or not usage.prompt_tokens:
            return
        self._ratios.learn(prompt.model, prompt.content_bytes, usage.prompt_tokens)
        if usage.cached_tokens is None:
            return
        endpoint = placement.endpoint
        tally = endpoint.tally
        predicted = round(placement.cached_share * usage.prompt_tokens)
        tally.prompt_tokens += usage.prompt_tokens
        tally.predicted_tokens += predicted
        tally.cached_tokens += usage.cached_tokens
        wrong = predicted - usage.cached_tokens > TOLERANCE_TOKENS + TOLERANCE_SHARE * predicted
        if wrong and placement.believed_stamp and not endpoint.removed:
            tally.contradictions += 1
            self._index.contradict(endpoint.slot, placement.believed_stamp)


def _home(chain: list[int], depths: dict[int, int], routing: Routing) -> int:
    """Hash of the prefix whose home decides: the first block that nobody holds, or `home_block`."""
    deepest = max(depths.values()) if depths else 0
    return chain[min(max(deepest, routing.home_block), len(chain) - 1)]
