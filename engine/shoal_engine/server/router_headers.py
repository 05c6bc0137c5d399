"""What the router in front says with a request: its hashes of the prompt, the tenant's salt, how long there is. Pure.

No client can send these: the router drops x-shoal-* from outside. They never make a request fail: what is not in its
form is as if it were not there. Only the salt counts whatever it says, because it keeps tenants apart.
"""

from __future__ import annotations

import binascii
import itertools
import logging
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from shoal_api.names import HEADER_CACHE_SALT, HEADER_CHAIN, HEADER_TIMEOUT_MS
from shoal_api.request_prefix import BLOCK_BYTES
from shoal_engine.messages import PromptTags, Submit

log = logging.getLogger(__name__)

_CHAIN = re.compile(r"([1-9][0-9]{0,11});([A-Za-z0-9_-]+)", re.ASCII)
_TIMEOUT = re.compile(r"[0-9]{1,10}", re.ASCII)
HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Chain:
    """`hashes[i]` stands for the first (i + 1) * 256 of the request's `content_bytes`."""

    content_bytes: int
    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RouterHeaders:
    """timeout_s: what is left of the request's time on its arrival; None: it may take as long as it does."""

    chain: Chain | None = None
    cache_salt: str = ""
    timeout_s: float | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> RouterHeaders:
        chain, timeout_ms = headers.get(HEADER_CHAIN), headers.get(HEADER_TIMEOUT_MS)
        return cls(
            None if chain is None else read_chain(chain),
            headers.get(HEADER_CACHE_SALT, ""),
            None if timeout_ms is None else read_timeout_s(timeout_ms),
        )

    def applied(self, submits: Sequence[Submit], *, cut: bool) -> Sequence[Submit]:
        """Requests to the engine as the router wants them. cut: prompts lost their beginning, as hashes know it."""
        chain = None if cut else self.chain
        if chain is None and not self.cache_salt:
            return submits
        tags = [None] * len(submits) if chain is None else place(chain, submits)
        return [
            msgspec.structs.replace(each, tags=own, cache_salt=joint_salt(self.cache_salt, each.cache_salt))
            for each, own in zip(submits, tags, strict=True)
        ]


NOTHING_SAID = RouterHeaders()


def read_chain(text: str) -> Chain | None:
    """The chain of a header, None if it is not in its form."""
    match = _CHAIN.fullmatch(text)
    if match is not None and len(match[2]) % 4 != 1:
        data = binascii.a2b_base64(match[2].translate(_PLAIN) + "=" * (-len(match[2]) % 4))
        count, rest = divmod(len(data), HASH_BYTES)
        if count and not rest and count * BLOCK_BYTES <= int(match[1]):
            return Chain(int(match[1]), struct.unpack(f">{count}Q", data))
    log.debug("a chain of %d characters was ignored: it is not in its form", len(text))
    return None


def read_timeout_s(text: str) -> float | None:
    """The time of a header, None if it is not in its form."""
    if _TIMEOUT.fullmatch(text) is None:
        log.debug("a timeout of %d characters was ignored: it is not in its form", len(text))
        return None
    return int(text) / 1000


def place(chain: Chain, submits: Sequence[Submit]) -> list[PromptTags | None]:
    """The tags of each request: hash i belongs where its share of all the prompts' tokens ends.

    Choices of one prompt, which share its list of tokens, all carry its tags: any of them may be computed first.
    """
    choices = [
        len(list(same)) for _, same in itertools.groupby(submits, lambda each: id(each.prompt_token_ids))
    ]
    firsts = itertools.accumulate([0, *choices[:-1]])
    lengths = [len(submits[first].prompt_token_ids) for first in firsts]
    placed = _split(chain, lengths)
    return [tags for tags, count in zip(placed, choices, strict=True) for _ in range(count)]


def _split(chain: Chain, lengths: Sequence[int]) -> Iterator[PromptTags | None]:
    """The tags of prompts of these many tokens that follow one another."""
    step, total, bound = BLOCK_BYTES * sum(lengths), chain.content_bytes, 0
    ends = [-(-step * number // total) for number in range(1, len(chain.hashes) + 1)]
    at = 0
    for length in lengths:
        first, start = at, bound
        bound += length
        while at < len(ends) and ends[at] <= bound:
            at += 1
        own = [end - start for end in ends[first:at]]
        yield PromptTags(list(chain.hashes[first:at]), own) if own else None


def joint_salt(tenant: str, own: str) -> str:
    """One salt of the tenant's and the request's own. No two pairs have the same: a request's own has no colon."""
    return f"{len(tenant)}:{tenant}:{own}" if tenant else own


_PLAIN = str.maketrans("-_", "+/")
