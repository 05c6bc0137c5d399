"""The prefix index against a slow and obvious twin, and the rules of its ageing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.prefix_index import PrefixIndex

SLOTS = 3
CAPACITIES = (4, 7, 1)

# Chains as the hash makes them: a block stands for itself and all before it, so equal blocks mean equal
# beginnings.
TREE = [
    [1],
    [1, 2],
    [1, 2, 3],
    [1, 2, 3, 4, 5],
    [1, 2, 6],
    [7],
    [7, 8, 9],
    [10, 11, 12, 13, 14, 15, 16, 17, 18],
    [],
]

ACTIONS = st.one_of(
    st.tuples(st.just("use"), st.integers(0, SLOTS - 1), st.sampled_from(TREE)),
    st.tuples(st.just("forget"), st.integers(0, SLOTS - 1), st.none()),
    st.tuples(st.just("resize"), st.integers(0, SLOTS - 1), st.integers(1, 8)),
    st.tuples(st.just("contradict"), st.integers(0, SLOTS - 1), st.integers(0, 20)),
    st.tuples(st.just("replace"), st.integers(0, SLOTS - 1), st.integers(1, 8)),
)


class Naive:
    """Per slot a list of (block, stamp), least recently used first."""

    def __init__(self) -> None:
        self.lists: list[list[tuple[int, int]]] = [[] for _ in range(SLOTS)]
        self.capacity = list(CAPACITIES)
        self.stamp = 0

    def use(self, slot: int, chain: list[int]) -> None:
        self.stamp += 1
        for block in reversed(chain[: self.capacity[slot]]):
            self.lists[slot] = [entry for entry in self.lists[slot] if entry[0] != block]
            self.lists[slot].append((block, self.stamp))
        self.trim(slot)

    def trim(self, slot: int) -> None:
        while len(self.lists[slot]) > self.capacity[slot]:
            self.lists[slot].pop(0)

    def contradict(self, slot: int, stamp: int) -> None:
        while self.lists[slot] and self.lists[slot][0][1] <= stamp:
            self.lists[slot].pop(0)

    def match(self, chain: list[int]) -> dict[int, int]:
        depths = {}
        for slot in range(SLOTS):
            held = {block for block, _ in self.lists[slot]}
            depth = next((i for i, block in enumerate(chain) if block not in held), len(chain))
            if depth:
                depths[slot] = depth
        return depths


def apply(index: PrefixIndex, naive: Naive, action: str, slot: int, argument: object) -> None:
    if action == "use":
        assert isinstance(argument, list)
        index.use(slot, argument)
        naive.use(slot, argument)
    elif action == "forget":
        index.forget(slot)
        naive.lists[slot] = []
    elif action == "contradict":
        assert isinstance(argument, int)
        before = index.size(slot)
        gone = index.contradict(slot, argument)
        naive.contradict(slot, argument)
        assert gone == before - index.size(slot)
    else:
        assert isinstance(argument, int)
        if action == "replace":
            index.remove(slot)
            index.add(slot, argument)
            naive.lists[slot] = []
        else:
            index.resize(slot, argument)
        naive.capacity[slot] = argument
        naive.trim(slot)


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTIONS, max_size=40))
def test_index_agrees_with_the_naive_twin_after_any_history(history: list[tuple[str, int, object]]) -> None:
    index, naive = PrefixIndex(), Naive()
    for slot, capacity in enumerate(CAPACITIES):
        index.add(slot, capacity)
    for action, slot, argument in history:
        apply(index, naive, action, slot, argument)
        for chain in TREE:
            assert index.match(chain) == naive.match(chain)
        everything = {block for entries in naive.lists for block, _ in entries}
        assert len(index) == len(everything), "nothing is remembered that no replica holds"
        for slot_ in range(SLOTS):
            assert index.size(slot_) == len(naive.lists[slot_]) <= naive.capacity[slot_]
            stamps = dict(naive.lists[slot_])
            for block in everything:
                assert index.last_use(slot_, block) == stamps.get(block, 0)
                assert bool(index.holders(block) >> slot_ & 1) == (block in stamps)


def test_tail_of_a_prompt_is_forgotten_before_its_head() -> None:
    index = PrefixIndex()
    index.add(0, 4)
    index.use(0, [1, 2, 3, 4])
    index.use(0, [9])
    assert index.match([1, 2, 3, 4]) == {0: 3}


def test_contradiction_forgets_what_is_at_least_as_old_and_nothing_younger() -> None:
    index = PrefixIndex()
    index.add(0, 100)
    index.use(0, [1, 2])
    stamp = index.use(0, [3, 4])
    index.use(0, [5, 6])
    index.use(0, [1])
    assert index.contradict(0, stamp) == 3, "2, 3 and 4; 1 was used again"
    assert index.match([5, 6]) == {0: 2}
    assert index.match([1, 2]) == {0: 1}
