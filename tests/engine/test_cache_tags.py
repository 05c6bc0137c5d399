"""Tags of the prefix cache: what is pushed to the routers is exactly what a lookup would find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import invariant

from shoal_api.request_prefix import request_chain_start
from shoal_engine.blocks import BlockPool
from shoal_engine.cache_tags import CacheTags, tags_by_block
from shoal_engine.messages import PromptTags
from shoal_engine.request import Request
from tests.engine.test_scheduler_properties import SchedulerMachine


def changes(tags: CacheTags) -> tuple[set[int], set[int]]:
    taken = tags.take_changes()
    return (set(), set()) if taken is None else (set(taken.stored), set(taken.evicted))


def test_a_tag_stays_on_the_content_that_has_it_until_that_leaves() -> None:
    tags = CacheTags()
    tags.attach(b"a", [1, 2])
    tags.attach(b"b", [2, 3])
    assert changes(tags) == ({1, 2, 3}, set())
    tags.drop(b"b")
    assert changes(tags) == (set(), {3})
    tags.drop(b"a")
    tags.attach(b"b", [2])
    assert changes(tags) == (set(), {1})  # 2 went and came back in between
    tags.drop(b"no such content")
    assert tags.take_changes() is None


def test_a_content_keeps_the_newest_of_too_many_tags() -> None:
    tags = CacheTags(most_per_content=3)
    tags.attach(b"a", [1, 2])
    tags.attach(b"a", [3, 4])
    assert changes(tags) == ({2, 3, 4}, set())
    tags.attach(b"a", [5, 6, 7, 8])  # of one request those that begin the chain
    assert changes(tags) == ({5, 6, 7}, {2, 3, 4})
    assert len(tags) == 3


@pytest.mark.parametrize(
    ("ends", "num_prompt_tokens", "expected"),
    [
        ([3, 4, 5, 12], 13, {0: [0, 1], 1: [2], 2: [3]}),
        ([4, 8], 8, {0: [0], 1: [1]}),
        ([3, 7], 7, {0: [0, 1]}),  # the last block holds three tokens of the prompt: it is never found by it
        ([1, 2, 3], 3, {}),  # shorter than a block
    ],
)
def test_a_tag_belongs_to_the_block_of_the_last_token_it_stands_for_or_the_last_full_one(
    ends: list[int], num_prompt_tokens: int, expected: dict[int, list[int]]
) -> None:
    assert tags_by_block(PromptTags(list(range(len(ends))), ends), num_prompt_tokens, 4) == expected


names = st.sampled_from([b"a", b"b", b"c", b"d"])
events = st.lists(
    st.tuples(st.just("attach"), names, st.lists(st.integers(0, 9), max_size=4))
    | st.tuples(st.just("drop"), names, st.just([]))
    | st.tuples(st.just("take"), names, st.just([]))
)


@given(events)
def test_whoever_applies_the_changes_knows_the_tags(script: list[tuple[str, bytes, list[int]]]) -> None:
    tags, model, known = CacheTags(most_per_content=1000), dict[int, bytes](), set[int]()
    for order, content, given_tags in [*script, ("take", b"", [])]:
        if order == "attach":
            tags.attach(content, given_tags)
            for tag in given_tags:
                model.setdefault(tag, content)
        elif order == "drop":
            tags.drop(content)
            model = {tag: where for tag, where in model.items() if where != content}
        else:
            stored, evicted = changes(tags)
            assert evicted <= known
            assert not stored & known
            known = (known - evicted) | stored
            assert known == model.keys()


class TaggedPool(BlockPool):
    """Tells the model whenever a content has left the cache."""

    on_lost: Callable[[], None] = staticmethod(lambda: None)

    def _unpublish(self, block: int) -> None:
        super()._unpublish(block)
        self.on_lost()


class TaggedMachine(SchedulerMachine):
    """All that can happen to a scheduler, with requests that carry tags, against a dictionary of where they are."""

    def prepare(self) -> None:
        self.known: set[int] = set()
        self.where: dict[int, bytes] = {}
        pool, tables = self.scheduler.pool, self.scheduler._tables
        pool.__class__ = TaggedPool
        pool.on_lost = self.lose  # type: ignore[attr-defined]
        pool.tags = CacheTags(most_per_content=1000)
        add = self.scheduler.add

        def add_tagged(request: Request) -> None:
            request.tags = tags_of(request)
            add(request)

        self.scheduler.add = add_tagged  # type: ignore[method-assign]
        for name in ("publish", "adopt"):
            setattr(tables, name, self.followed(getattr(tables, name)))

    def followed(self, method: Callable[..., None]) -> Callable[..., None]:
        """`method` of the tables; then the model looks what it has brought into the cache."""

        def call(request: Request, *args: Any) -> None:
            before = request.num_published_blocks
            method(request, *args)
            size, tags = self.limits.block_tokens, request.tags or PromptTags([], [])
            for tag, end in zip(tags.hashes, tags.ends, strict=True):
                full = [index for index in range(request.num_prompt_tokens // size) if index * size < end]
                for index in range(before, request.num_published_blocks):
                    if index in full[-1:] and request.block_ids[index]:
                        self.where.setdefault(tag, request.block_hashes[index])

        return call

    def lose(self) -> None:
        cached = self.scheduler.pool._cached
        self.where = {tag: content for tag, content in self.where.items() if content in cached}

    @invariant()
    def nothing_is_broken(self) -> None:
        if not hasattr(self, "where"):
            return
        super().nothing_is_broken()
        taken = self.scheduler.pool.tags.take_changes()
        if taken is not None:
            assert self.known.issuperset(taken.evicted)
            assert self.known.isdisjoint(taken.stored)
            self.known.difference_update(taken.evicted)
            self.known.update(taken.stored)
        assert self.known == self.where.keys()
        assert set(self.where.values()) <= self.scheduler.pool._cached.keys()
        if not self.scheduler.pool.enable_prefix_caching:
            assert not self.known


def tags_of(request: Request) -> PromptTags | None:
    """As a router would: a chain over the prompt's text, told apart by salt and adapter, some tokens a link.

    One prompt may be spelt in several ways, and the place of a tag is an estimate that depends on what follows.
    """
    serial = int(request.id[1:])
    if not serial % 5:
        return None
    spelling, shift = serial % 2, serial % 3 == 0
    chain = request_chain_start("model", request.adapter, f"{request.cache_salt}{spelling}")
    ends = range(2, request.num_prompt_tokens + 1, 2 + spelling)
    hashes = [hash((chain, *request.token_ids[:end])) % 2**64 for end in ends]
    return PromptTags(hashes, [end - shift for end in ends])


TestTags = TaggedMachine.TestCase
TestTags.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
