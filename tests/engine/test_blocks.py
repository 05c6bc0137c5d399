"""The block pool: order of reuse, sharing, eviction, twins, and that its own check finds what is broken."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from shoal_engine.blocks import NULL_BLOCK, BlockPool
from shoal_engine.free_list import FreeList
from shoal_engine.messages import TagChanges


def tagged(pool: BlockPool, names: str) -> None:
    """Each of these contents carries its letter as a tag."""
    for name in names:
        pool.tags.attach(name.encode(), [ord(name)])


def tag_changes(pool: BlockPool) -> str:
    """The tags that came and went since the last call."""
    changes = pool.tags.take_changes() or TagChanges([], [])
    signs = (("+", changes.stored), ("-", changes.evicted))
    return " ".join(sign + chr(tag) for sign, tags in signs for tag in sorted(tags))


def published(pool: BlockPool, names: str) -> list[int]:
    """A table whose blocks are published under one letter each; '.' is a block without a hash."""
    table = pool.allocate(len(names))
    for block, name in zip(table, names, strict=True):
        if name != ".":
            pool.publish(block, name.encode())
    return table


def found(pool: BlockPool, names: str) -> list[int]:
    return pool.lookup([name.encode() for name in names], 0, len(names))


def test_every_block_but_the_null_block_is_handed_out_once() -> None:
    pool = BlockPool(5)
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    assert pool.num_free == 0
    assert pool.usage == 1.0


def test_asking_for_too_much_changes_nothing() -> None:
    pool = BlockPool(4)
    pool.allocate(1)
    with pytest.raises(RuntimeError, match="asked for 3 blocks, 2 are free"):
        pool.allocate(3)
    assert pool.num_free == 2
    pool.check_integrity([[1]])


def test_a_pool_without_a_usable_block_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 blocks"):
        BlockPool(1)


@pytest.mark.parametrize(
    ("tables", "order"),
    [
        (["abc"], "cba"),  # leaves before roots
        (["abc", "xyz"], "cbazyx"),  # the table freed first goes first
        (["ab.", "xy"], ".bayx"),  # what has no hash serves nobody: it goes before all
        (["a.", "x."], "..ax"),
        (["..."], "..."),
    ],
)
def test_eviction_takes_blocks_without_hash_then_least_recent_leaf_first(
    tables: list[str], order: str
) -> None:
    pool = BlockPool(1 + sum(map(len, tables)))
    held = [published(pool, names) for names in tables]
    names = {
        block: name
        for table, text in zip(held, tables, strict=True)
        for block, name in zip(table, text, strict=True)
    }
    for table in held:
        pool.free(table)
    assert "".join(names[block] for block in pool.allocate(len(names))) == order


def test_blocks_without_hash_are_reused_last_in_first_out() -> None:
    pool = BlockPool(8)
    first, second = pool.allocate(2), pool.allocate(2)
    pool.free(first)
    pool.free(second)
    assert pool.allocate(4) == second + first


def test_a_hit_takes_a_block_out_of_the_middle_of_the_free_list_and_makes_it_recent() -> None:
    pool = BlockPool(4)
    a, b, c = published(pool, "abc")
    pool.free([a, b, c])
    pool.touch([b])
    assert pool.num_free == 2
    pool.free([b])
    assert pool.allocate(3) == [c, a, b]


def test_a_shared_block_is_free_only_when_the_last_table_lets_go() -> None:
    pool = BlockPool(3)
    table = published(pool, "a")
    pool.touch(table)
    pool.free(table)
    assert pool.num_free == 1
    pool.check_integrity([table])
    pool.free(table)
    assert pool.num_free == 2


def test_lookup_ends_at_the_first_miss_and_respects_its_bounds() -> None:
    pool = BlockPool(6)
    a, b, d = published(pool, "abd")
    assert found(pool, "abcd") == [a, b]
    assert pool.lookup([b"a", b"b", b"d"], 1, 2) == [b]
    assert pool.lookup([b"a", b"b", b"d"], 1, 3) == [b, d]
    assert found(pool, "xab") == []


def test_an_evicted_block_is_found_no_more() -> None:
    pool = BlockPool(3)
    pool.free(published(pool, "ab"))
    pool.allocate(1)
    assert len(found(pool, "ab")) == 1
    pool.allocate(1)
    assert found(pool, "a") == []
    assert pool.num_cached == 0


@pytest.mark.parametrize(
    ("cached", "run", "expected"),
    [
        ("abcd", 1, "...d"),
        ("abcd", 2, "..cd"),
        ("abcd", 9, "abcd"),  # shorter than the window: all of it
        ("abc", 2, ".bc"),
        ("bcd", 2, "..cd"),  # the head is not needed
        ("ab d", 2, "ab"),  # a run must be contiguous
        (" b d", 2, ""),
        ("a  d", 1, "...d"),
        ("", 1, ""),
    ],
)
def test_a_window_needs_only_the_last_blocks_of_a_prefix(cached: str, run: int, expected: str) -> None:
    pool = BlockPool(6)
    blocks = {}
    for name in cached.replace(" ", ""):
        (blocks[name],) = published(pool, name)
    table = pool.lookup_window([b"a", b"b", b"c", b"d"], 4, run)
    assert table == [NULL_BLOCK if name == "." else blocks[name] for name in expected]


def test_a_twin_takes_over_when_the_first_block_of_a_content_is_evicted() -> None:
    pool = BlockPool(4)
    (first,), (second,) = published(pool, "a"), published(pool, "a")
    tagged(pool, "a")
    assert tag_changes(pool) == "+a"
    assert found(pool, "a") == [first]
    pool.free([first])
    assert first not in found(pool, "a"), "an idle copy of what is in use only takes room"
    assert found(pool, "a") == [second]
    pool.free([second])
    assert pool.allocate(2) == [first, 3]
    assert found(pool, "a") == [second]
    assert tag_changes(pool) == ""  # the content was there all the time
    pool.allocate(1)
    assert tag_changes(pool) == "-a"


def test_of_idle_twins_the_freshest_is_kept() -> None:
    pool = BlockPool(5)
    (old,) = published(pool, "a")
    pool.free([old])
    (fresh,) = published(pool, "x")
    pool.free([fresh])
    (twin,) = published(pool, ".")
    pool.touch([old])  # in use again while its content is computed a second time
    pool.publish(twin, b"a")
    pool.free([old])
    pool.free([twin])
    assert found(pool, "a") == [twin]
    pool.check_integrity([])
    assert pool.allocate(4)[-1] == twin


def test_a_content_computed_again_while_its_old_copy_is_idle_keeps_one_copy() -> None:
    pool = BlockPool(4)
    (old,) = published(pool, "a")
    (again,) = pool.allocate(1)
    pool.free([old])
    pool.publish(again, b"a")
    pool.free([again])
    pool.check_integrity([])
    assert found(pool, "a") == [again]


def test_forgotten_blocks_are_found_no_more_and_reused_first() -> None:
    pool = BlockPool(4)
    a, b, c = published(pool, "abc")
    tagged(pool, "abc")
    pool.free([b, c])
    pool.forget([a, b])
    assert found(pool, "a") == found(pool, "b") == []
    assert found(pool, "c") == [c]
    assert tag_changes(pool) == "+c"  # what came and went is not mentioned
    pool.check_integrity([[a]])
    assert pool.allocate(1) == [b]


def test_tags_leave_with_their_content() -> None:
    pool = BlockPool(3)
    pool.free(published(pool, "ab"))
    tagged(pool, "ab")
    assert tag_changes(pool) == "+a +b"
    pool.allocate(1)
    assert tag_changes(pool) == "-b"
    published(pool, "c")
    tagged(pool, "c")
    assert tag_changes(pool) == "+c -a"


def test_without_prefix_caching_nothing_is_published() -> None:
    pool = BlockPool(3, enable_prefix_caching=False)
    pool.free(published(pool, "ab"))
    assert found(pool, "ab") == []
    assert pool.num_cached == 0


def test_null_blocks_in_tables_are_neither_taken_nor_freed() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.touch([NULL_BLOCK, block])
    pool.free([NULL_BLOCK, block])
    pool.free([NULL_BLOCK, block])
    pool.check_integrity([])


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda pool: pool.free([1, 1]), "freed more often"),
        (lambda pool: pool.publish(3, b"x"), "cannot be published"),
        (lambda pool: pool.publish(1, b"x"), "cannot be published"),
        (lambda pool: pool.check_integrity([[1]]), "differ from the tables"),
        (lambda pool: pool.check_integrity([[1, 2], [2]]), "differ from the tables"),
        (lambda pool: (pool._free.put_last(1), pool.check_integrity()), "free and referenced"),
        (lambda pool: (pool._free.pop(1), pool.check_integrity()), "neither used nor free"),
        (lambda pool: (pool._cached.clear(), pool.check_integrity()), "map of hashes"),
        (lambda pool: (pool._cached.update(a=2), pool.check_integrity()), "map of hashes"),
    ],
)
def test_misuse_and_damage_are_found(break_it: object, says: str) -> None:
    pool = BlockPool(5)
    published(pool, "ab")
    with pytest.raises(RuntimeError, match=says):
        break_it(pool)  # type: ignore[operator]


def test_a_broken_ring_is_found() -> None:
    ring = FreeList(5)
    assert ring.check() == [1, 2, 3, 4]
    ring._prev[3] = 1
    with pytest.raises(RuntimeError, match="broken at block 3"):
        ring.check()
    ring = FreeList(5)
    ring._next[4] = 1  # a loop that never comes back to the anchor
    with pytest.raises(RuntimeError, match="broken at block 1"):
        ring.check()


class NaivePool:
    """The same rules on one list, searched from end to end."""

    def __init__(self, num_blocks: int) -> None:
        self.free_order = list(range(1, num_blocks))
        self.references = dict.fromkeys(range(num_blocks), 0)
        self.names: dict[int, bytes] = {}

    def allocate(self, count: int) -> list[int]:
        taken, self.free_order = self.free_order[:count], self.free_order[count:]
        for block in taken:
            self.references[block] = 1
            self.names.pop(block, None)
        return taken

    def touch(self, block: int) -> None:
        if not self.references[block]:
            self.free_order.remove(block)
        self.references[block] += 1

    def free(self, table: list[int]) -> None:
        for block in reversed(table):
            self.references[block] -= 1
            if not self.references[block]:
                if block in self.names:
                    self.free_order.append(block)
                else:
                    self.free_order.insert(0, block)


@settings(max_examples=150, deadline=None)
@given(
    num_blocks=st.integers(2, 12),
    ops=st.lists(
        st.tuples(st.sampled_from(["take", "free", "publish", "hit"]), st.integers(0, 50)), max_size=60
    ),
)
def test_the_pool_does_what_a_naive_list_does(num_blocks: int, ops: list[tuple[str, int]]) -> None:
    pool, naive = BlockPool(num_blocks), NaivePool(num_blocks)
    tables: list[list[int]] = []
    num_names = 0
    for op, number in ops:
        if op == "take":
            count = number % (pool.num_free + 1)
            tables.append(pool.allocate(count))
            assert tables[-1] == naive.allocate(count)
        elif op == "free" and tables:
            table = tables.pop(number % len(tables))
            pool.free(table)
            naive.free(table)
        elif op == "publish" and tables:
            for block in tables[number % len(tables)]:
                if block not in naive.names:
                    num_names += 1
                    naive.names[block] = str(num_names).encode()
                    pool.publish(block, naive.names[block])
        elif op == "hit" and naive.names:
            block, name = sorted(naive.names.items())[number % len(naive.names)]
            assert pool.lookup([name], 0, 1) == [block]
            pool.touch([block])
            naive.touch(block)
            tables.append([block])
        pool.check_integrity(tables)
        assert pool.num_free == len(naive.free_order)
        assert pool.num_cached == len(naive.names)
    assert pool.allocate(pool.num_free) == naive.free_order
