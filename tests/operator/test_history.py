"""Which revisions are forgotten: never one that is needed, and never more than it takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal_api.spec import LLMDeployment
from shoal_operator.history import outlived
from shoal_operator.world import Replica, Revision, World

NAMES = "abcdefgh"


def world(revisions: str, in_use: str, limit: int) -> World:
    spec = {"model": {"uri": "hf://a/b"}, "revisionHistoryLimit": limit}
    deployment = LLMDeployment.parse({"metadata": {"name": "m"}, "spec": spec})
    return World(
        deployment,
        0.0,
        replicas=tuple(Replica(f"m-{name}-0", name, "1", name, 0, 0.0) for name in in_use),
        revisions=tuple(Revision(name, float(n), {}) for n, name in enumerate(revisions)),
    )


def test_the_oldest_go_first():
    assert outlived(world("abcde", "e", limit=2), "e") == ("a", "b")


def test_what_is_in_use_stays_and_a_younger_one_goes():
    assert outlived(world("abcde", "ae", limit=2), "e") == ("b", "c")


def test_none_goes_within_the_limit():
    assert outlived(world("abc", "", limit=2), "c") == ()


@given(
    st.integers(0, len(NAMES)), st.sets(st.sampled_from(NAMES)), st.integers(0, 10), st.sampled_from(NAMES)
)
def test_what_goes_is_old_unused_and_no_more_than_the_excess(
    count: int, used: set[str], limit: int, serving: str
):
    revisions = NAMES[:count]
    gone = outlived(world(revisions, "".join(used), limit), serving)
    old = [name for name in revisions if name != serving]
    assert not set(gone) & (used | {serving})
    assert len(gone) == min(max(0, len(old) - limit), len(set(old) - used))
    kept = [name for name in old if name not in gone and name not in used]
    assert all(revisions.index(a) < revisions.index(b) for a in gone for b in kept)
