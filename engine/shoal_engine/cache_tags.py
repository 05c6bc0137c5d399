"""Which beginnings of prompts, as the routers hash them, the prefix cache holds. Knows no blocks and no requests.

A router has no tokenizer: it hashes a request's bytes and sends these hashes along (x-shoal-chain). They become
tags of what the engine keeps under hashes of its own, and travel back as that comes and goes. So an index of tags
in a router says exactly what is cached.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal_engine.messages import PromptTags, TagChanges

# Spelt differently, one prompt has many hashes. No content may gather them without end; plain text brings two at most.
MOST_PER_CONTENT = 32


class CacheTags:
    """Tags of cached contents; a content is known by the hash that it is cached under.

    A tag is on one content at a time and stays there until that leaves the cache. `take_changes` tells what has
    happened in between: what came and went again is not mentioned.
    """

    __slots__ = ("_content", "_evicted", "_most", "_stored", "_tags")

    def __init__(self, most_per_content: int = MOST_PER_CONTENT) -> None:
        self._most = most_per_content
        self._content: dict[int, bytes] = {}
        self._tags: dict[bytes, list[int]] = {}
        self._stored: set[int] = set()
        self._evicted: set[int] = set()

    def __len__(self) -> int:
        return len(self._content)

    @property
    def changed(self) -> bool:
        return bool(self._stored or self._evicted)

    def attach(self, content: bytes, tags: Sequence[int]) -> None:
        """A request with these tags has stored or found `content`, which is cached. First tags count most."""
        new = [tag for tag in dict.fromkeys(tags) if tag not in self._content][: self._most]
        if not new:
            return
        there = self._tags.setdefault(content, [])
        for tag in there[: max(0, len(there) + len(new) - self._most)]:
            self._forget(tag)
        there += new
        del there[: max(0, len(there) - self._most)]
        for tag in new:
            self._content[tag] = content
            if tag in self._evicted:
                self._evicted.remove(tag)
            else:
                self._stored.add(tag)

    def drop(self, content: bytes) -> None:
        """`content` is cached no more."""
        for tag in self._tags.pop(content, ()):
            self._forget(tag)

    def take_changes(self) -> TagChanges | None:
        """What has changed since the last call; None if nothing has."""
        if not self.changed:
            return None
        changes = TagChanges(list(self._stored), list(self._evicted))
        self._stored.clear()
        self._evicted.clear()
        return changes

    def _forget(self, tag: int) -> None:
        del self._content[tag]
        if tag in self._stored:
            self._stored.remove(tag)
        else:
            self._evicted.add(tag)


def tags_by_block(tags: PromptTags, num_prompt_tokens: int, block_tokens: int) -> dict[int, list[int]]:
    """The tags of each block of a prompt: those whose last token lies in it.

    The last block is cached only if it is full. Tags that would belong to one that is not are on the block before:
    short of a few tokens, the prompt is cached with it.
    """
    by_block: dict[int, list[int]] = {}
    last = num_prompt_tokens // block_tokens - 1
    if last >= 0:
        for tag, end in zip(tags.hashes, tags.ends, strict=True):
            by_block.setdefault(min((end - 1) // block_tokens, last), []).append(tag)
    return by_block
