"""The index of a replica that reports what it holds, against a slow and obvious twin."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.prefix_index import PrefixIndex

BLOCKS = range(1, 9)
CHAINS = [[1], [1, 2], [1, 2, 3], [1, 2, 4, 5], [6], [6, 7, 8], []]
REPORTS, BELIEVES = 0, 1  # slots: one reports, the other shares its blocks by belief

SOME = st.lists(st.sampled_from(BLOCKS), max_size=6)
ACTIONS = st.one_of(
    st.tuples(st.just("snapshot"), SOME),
    st.tuples(st.just("delta"), st.tuples(SOME, SOME)),
    st.tuples(st.just("claim"), st.sampled_from(CHAINS)),
    st.tuples(st.just("release"), st.integers(0, 20)),
    st.tuples(st.just("restart"), st.none()),
    st.tuples(st.just("link"), st.none()),
    st.tuples(st.just("believe"), st.sampled_from(CHAINS)),
)


class Twin:
    """What is stored, and every request with the number of updates since its end (-1: under way)."""

    def __init__(self) -> None:
        self.stored: set[int] = set()
        self.requests: list[tuple[list[int], int]] = []

    def updated(self) -> None:
        aged = [(claimed, age + (age >= 0)) for claimed, age in self.requests]
        self.requests = [(claimed, age) for claimed, age in aged if age < 2]

    def held(self) -> set[int]:
        return self.stored.union(*(claimed for claimed, _ in self.requests))


class History:
    """Plays actions to the index and to its twin."""

    def __init__(self) -> None:
        self.index, self.twin = PrefixIndex(), Twin()
        for slot in (REPORTS, BELIEVES):
            self.index.add(slot, 100)
        self.index.report(REPORTS)
        self.open: list[tuple[list[int], int]] = []  # chain and start, as the router keeps them
        self.believed: set[int] = set()

    def play(self, action: str, argument: object) -> None:
        getattr(self, action)(argument)

    def snapshot(self, stored: list[int]) -> None:
        reported = self.index.report(REPORTS)
        reported.keep_only(set(stored))
        reported.store(stored)
        reported.updated()
        self.twin.stored = set(stored)
        self.twin.updated()

    def delta(self, changes: tuple[list[int], list[int]]) -> None:
        evicted, stored = changes
        reported = self.index.report(REPORTS)
        reported.evict(evicted)
        reported.store(stored)
        reported.updated()
        self.twin.stored = self.twin.stored - set(evicted) | set(stored)
        self.twin.updated()

    def claim(self, chain: list[int]) -> None:
        depth = self.index.match(chain).get(REPORTS, 0)
        start = self.index.report(REPORTS).claim(chain, depth)
        self.open.append((chain, start))
        self.twin.requests.append((chain[start:], -1))

    def release(self, which: int) -> None:
        if not self.open:
            return
        chain, start = self.open.pop(which % len(self.open))
        self.index.report(REPORTS).release(chain, start)
        at = self.twin.requests.index((chain[start:], -1))
        self.twin.requests[at] = (chain[start:], 0)

    def restart(self, _: None) -> None:
        self.index.forget(REPORTS)
        self.twin.stored = set()

    def link(self, _: None) -> None:
        """It breaks and comes back: the claims of before are gone, and ending them changes nothing."""
        before = self.index.report(REPORTS)
        held = self.twin.held()
        self.index.believe(REPORTS)
        assert {block for block in BLOCKS if self.index.last_use(REPORTS, block)} == held
        self.index.report(REPORTS)
        for chain, start in self.open:
            before.release(chain, start)
        self.open, self.twin = [], Twin()

    def believe(self, chain: list[int]) -> None:
        self.index.use(BELIEVES, chain)
        self.believed |= set(chain)


@settings(max_examples=400, deadline=None)
@given(st.lists(ACTIONS, max_size=40))
def test_index_holds_what_is_reported_and_what_requests_under_way_will_compute(
    actions: list[tuple[str, object]],
) -> None:
    history = History()
    for action, argument in actions:
        history.play(action, argument)
        held, index = history.twin.held(), history.index
        for block in BLOCKS:
            expected = (block in held) << REPORTS | (block in history.believed) << BELIEVES
            assert index.holders(block) == expected
        assert len(index) == len(held | history.believed)
        assert index.size(REPORTS) == len(held)
        for chain in CHAINS:
            depth = next((i for i, block in enumerate(chain) if block not in held), len(chain))
            assert index.match(chain).get(REPORTS, 0) == depth
    history.index.remove(REPORTS)
    assert len(history.index) == len(history.believed), "a replica that leaves leaves nothing behind"


def test_claim_outlives_its_request_until_an_update_that_was_surely_built_later() -> None:
    index = PrefixIndex()
    index.add(0, 10)
    reported = index.report(0)
    start = reported.claim([1, 2], 0)
    reported.release([1, 2], start)
    reported.updated()
    assert index.match([1, 2]) == {0: 2}, "this update may have been built before the end"
    reported.store([1])
    reported.updated()
    assert index.match([1, 2]) == {0: 1}


def test_reported_blocks_become_beliefs_that_age_when_the_link_is_lost() -> None:
    index = PrefixIndex()
    index.add(0, 3)
    index.report(0).store([1, 2, 3, 4])
    index.believe(0)
    assert index.match([2, 3, 4]) == {0: 3}
    assert index.match([1]) == {}, "the engine's own size bounds them, the first reported goes first"
    index.use(0, [9])
    assert index.match([2]) == {}
