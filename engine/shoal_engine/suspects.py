"""Published blocks for which no good row of logits has vouched yet. Knows who computed and who trusts them."""

from __future__ import annotations

from collections.abc import Iterable

from shoal_engine.request import Request

SOMEBODY = ""  # owner of what was computed from the blocks of others: no more to be relied on than those


class Suspects:
    """A bad row (NaN) may come from any block it reads. Good rows clear blocks, bad ones tell which to forget.

    An entry may outlast the block's content; whoever acts on one asks the pool whether it is still published.
    """

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}  # block -> id of the request that computed it

    def add(self, request: Request, blocks: list[int]) -> None:
        """The request has published blocks."""
        owner = request.id
        if request.trusted_blocks:
            owner = SOMEBODY
            request.trusted_blocks += blocks
        self._owners.update(dict.fromkeys(blocks, owner))

    def discard(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._owners.pop(block, None)

    def trust(self, request: Request, prefix: list[int]) -> None:
        """The request goes on from these blocks, proven or not."""
        if self._owners:
            request.trusted_blocks += prefix[len(self._proven(request, prefix)) :]

    def usable(self, request: Request, prefix: list[int]) -> list[int]:
        """What of `prefix` the request may read. One that has failed once takes no more chances on others.

        So if it fails again, it was its own fault, and trying has an end.
        """
        return self._proven(request, prefix) if request.num_failed_steps else prefix

    def vouch(self, request: Request) -> None:
        """A good row has come from all known tokens of the request, and no others are published."""
        self.discard(request.block_ids[request.num_verified_blocks : request.num_published_blocks])
        request.num_verified_blocks = request.num_published_blocks
        request.trusted_blocks.clear()

    def of(self, request: Request) -> set[int]:
        """Blocks that the request computed or has read, and that nobody has vouched for."""
        own = {block for block, owner in self._owners.items() if owner == request.id}
        return own | self._owners.keys() & {*request.block_ids, *request.trusted_blocks}

    def _proven(self, request: Request, prefix: list[int]) -> list[int]:
        """The blocks of `prefix` before the first suspect that is not the request's own."""
        for index, block in enumerate(prefix):
            if self._owners.get(block, request.id) != request.id:
                return prefix[:index]
        return prefix
