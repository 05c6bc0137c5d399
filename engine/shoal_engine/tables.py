"""Every request's block table: share a prefix, grow, publish, give back. Does not decide who runs.

What a step in flight has published may yet prove wrong, and what it reads may not be handed out again. Each
therefore has a list of the blocks published in it, and a fence behind which freed blocks wait for its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shoal_api.prefix import block_hash, chain_start, hash_blocks
from shoal_engine.blocks import NULL_BLOCK, BlockPool
from shoal_engine.cache_tags import tags_by_block
from shoal_engine.limits import SchedulerLimits
from shoal_engine.request import Request
from shoal_engine.suspects import Suspects


class _Flight:
    """What one step in flight has published and what is fenced behind it."""

    __slots__ = ("fenced", "num_fenced", "published")

    def __init__(self) -> None:
        self.published: list[int] = []
        self.fenced: list[Sequence[int]] = []
        self.num_fenced = 0


class BlockTables:
    """The tables are in the requests; this keeps them, the pool and the steps in flight consistent."""

    def __init__(self, pool: BlockPool, limits: SchedulerLimits) -> None:
        self.pool = pool
        self.block_tokens = limits.block_tokens
        self._window = limits.sliding_window
        self._prefix_run = max(1, self._blocks((self._window or 1) - 1))
        self.max_chunk_tokens = limits.windowed_chunk_tokens(pool.capacity)
        self._most_resident = self._blocks((self._window or 1) - 1 + self.max_chunk_tokens) + 1
        self._flights: dict[int, _Flight] = {}
        self._suspects = Suspects()

    @property
    def num_fenced(self) -> int:
        """Blocks that come free with the steps in flight; a bound, because hits may take them up again."""
        return sum(flight.num_fenced for flight in self._flights.values())

    @property
    def fenced(self) -> Iterator[Sequence[int]]:
        return (table for flight in self._flights.values() for table in flight.fenced)

    @property
    def oldest_flight(self) -> int | None:
        return next(iter(self._flights), None)

    def in_flight(self, request: Request) -> bool:
        return request.last_step in self._flights

    def begin(self, step: int) -> None:
        self._flights[step] = _Flight()

    def settle(self, step: int) -> None:
        """The step has ended, well or not: lift its fence."""
        for table in self._flights.pop(step).fenced:
            self.pool.free(table)

    def undo(self) -> None:
        """Unpublish what the steps in flight have published."""
        for flight in self._flights.values():
            self._forget(flight.published)
            flight.published = []

    def blocks_to_hold(self, num_tokens: int) -> int:
        """Most blocks that computing this many tokens of one request ever holds at once."""
        blocks = self._blocks(num_tokens)
        return blocks if self._window is None else min(blocks, self._most_resident)

    def outstanding(self, request: Request) -> int:
        """Blocks that the request still takes until all its tokens are computed."""
        live = len(request.block_ids) - request.num_dropped_blocks
        return max(0, self.blocks_to_hold(request.num_tokens) - live)

    def hash_prompt(self, request: Request) -> None:
        """Once, when it arrives. Raises OverflowError for token ids outside int32."""
        if not self._shares(request):
            return
        request.block_hashes = hash_blocks(
            request.token_ids, self.block_tokens, request.cache_salt, request.adapter_digest
        )
        if request.tags is not None:
            request.block_tags = tags_by_block(request.tags, request.num_prompt_tokens, self.block_tokens)

    def find_prefix(self, request: Request) -> list[int]:
        """Table of the longest cached prefix, [] if there is none. At least one token is left to compute."""
        if request.needs_prompt_logits or not self._shares(request):
            return []
        stop = (len(request.token_ids) - 1) // self.block_tokens
        self._hash(request, stop)
        if self._window is None:
            return self._suspects.usable(request, self.pool.lookup(request.block_hashes, 0, stop))
        prefix = self.pool.lookup_window(request.block_hashes, stop, self._prefix_run)
        return prefix if len(self._suspects.usable(request, prefix)) == len(prefix) else []

    def find_more(self, request: Request) -> list[int]:
        """Blocks behind the computed tokens that others have computed since; [] inside a block."""
        start, inside = divmod(request.num_computed_tokens, self.block_tokens)
        if inside or request.needs_prompt_logits or not self._shares(request):
            return []
        stop = (len(request.token_ids) - 1) // self.block_tokens
        self._hash(request, stop)
        return self._suspects.usable(request, self.pool.lookup(request.block_hashes, start, stop))

    def adopt(self, request: Request, prefix: list[int]) -> None:
        """Append cached blocks to the table; their tokens count as computed."""
        self.pool.touch(prefix)
        self._suspects.trust(request, prefix)
        if request.block_tags:
            self._tag(request, len(request.block_ids), prefix)
        request.block_ids += prefix
        request.num_dropped_blocks += prefix.count(NULL_BLOCK)
        request.num_published_blocks = len(request.block_ids)
        request.num_computed_tokens = len(request.block_ids) * self.block_tokens

    def missing(self, request: Request, end: int) -> int:
        """Blocks to allocate before tokens up to `end` can be computed."""
        return max(0, self._blocks(end) - len(request.block_ids))

    def grow(self, request: Request, start: int, end: int) -> bool:
        """Make the table cover tokens up to `end`; `start` is the first that is computed in this step.

        False when too few blocks are free; nothing is allocated then.
        """
        if self._window is not None:
            self._drop(request, (start - self._window + 1) // self.block_tokens)
        count = self.missing(request, end)
        if count > self.pool.num_free:
            return False
        if count:
            request.block_ids += self.pool.allocate(count)
        return True

    def publish(self, request: Request) -> None:
        """Hash the blocks that have become full of known, scheduled tokens, and let others find them."""
        full = min(request.num_computed_tokens, len(request.token_ids)) // self.block_tokens
        if full <= request.num_published_blocks or not self._shares(request):
            return
        self._hash(request, full)
        published = []
        for index in range(request.num_published_blocks, full):
            block = request.block_ids[index]
            if block != NULL_BLOCK:
                self.pool.publish(block, request.block_hashes[index])
                published.append(block)
        if request.block_tags:
            first = request.num_published_blocks
            self._tag(request, first, request.block_ids[first:full])
        request.num_published_blocks = full
        self._flights[request.last_step].published += published
        self._suspects.add(request, published)

    def vouch(self, request: Request) -> None:
        """A good row of logits has come from all known tokens of the request."""
        self._suspects.vouch(request)

    def forget_suspects(self, request: Request) -> set[int]:
        """Unpublish what a bad row of the request may come from, unless it is vouched for; returns it."""
        forgotten = {block for block in self._suspects.of(request) if self.pool.is_cached(block)}
        self._forget(sorted(forgotten))
        return forgotten

    def release(self, request: Request) -> None:
        """Give back the whole table, behind the fence while a step with the request is in flight."""
        self._give_back(request, request.block_ids[request.num_dropped_blocks :])
        request.reset_progress()

    def check(self, request: Request) -> None:
        """Raise RuntimeError unless the table fits what is computed and its writable part is unshared."""
        table = request.block_ids
        if len(table) != self._blocks(request.num_computed_tokens):
            raise RuntimeError(f"{request!r} has a table of {len(table)} blocks")
        if any(self.pool.references(block) > 1 for block in table[request.num_published_blocks :]):
            raise RuntimeError(f"{request!r} shares a block that may still be written")

    def _drop(self, request: Request, stop: int) -> None:
        """Give back the blocks before index `stop`: all queries to come look past them."""
        first = request.num_dropped_blocks
        if stop > first:
            self._give_back(request, request.block_ids[first:stop])
            request.block_ids[first:stop] = [NULL_BLOCK] * (stop - first)
            request.num_dropped_blocks = stop

    def _give_back(self, request: Request, table: list[int]) -> None:
        flight = self._flights.get(request.last_step)
        if flight is None:
            self.pool.free(table)
        else:
            flight.fenced.append(table)
            flight.num_fenced += sum(self.pool.references(block) == 1 for block in table)

    def _tag(self, request: Request, first: int, blocks: Sequence[int]) -> None:
        """These cached blocks, from index `first` of the table on, carry the router's hashes of the request."""
        assert request.block_tags is not None
        for index, block in enumerate(blocks, first):
            tags = request.block_tags.get(index)
            if tags and block != NULL_BLOCK:
                self.pool.tags.attach(request.block_hashes[index], tags)

    def _forget(self, blocks: Sequence[int]) -> None:
        self.pool.forget(blocks)
        self._suspects.discard(blocks)

    def _hash(self, request: Request, num_blocks: int) -> None:
        hashes, size = request.block_hashes, self.block_tokens
        for index in range(len(hashes), num_blocks):
            parent = hashes[-1] if hashes else chain_start(size, request.cache_salt)
            tokens = request.token_ids[index * size : (index + 1) * size]
            hashes.append(block_hash(parent, tokens, request.adapter_digest))

    def _shares(self, request: Request) -> bool:
        # An adapter without a digest could be reloaded under its old name: its blocks are nobody else's.
        return self.pool.enable_prefix_caching and (not request.adapter or request.adapter_digest is not None)

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)
