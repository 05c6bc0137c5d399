"""Idle threads of the engine do not spin against the rest of the machine, unless the user says otherwise; the collector."""

from __future__ import annotations

import gc

import pytest

from shoal_engine.host_runtime import SPINS, collection_paused, spin_briefly


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_threads_spin_briefly_unless_the_user_has_chosen(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    environ = dict(given)
    spin_briefly(environ)
    assert environ == expected


def test_the_collector_goes_on_after_a_pause_only_where_it_ran() -> None:
    assert gc.isenabled()
    with collection_paused():
        assert not gc.isenabled()
        with collection_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
