"""Which requests are refused for having met two deaths, and for how long."""

from __future__ import annotations

import logging

import pytest

from shoal_router.errors import RequestQuarantined
from shoal_router.quarantine import MAX_SUSPECTS, QUARANTINE_S, Quarantine
from shoal_router.request import Head, Request


def request(body: bytes, path: bytes = b"/v1/completions") -> Request:
    return Request(Head(b"POST", path, False, True), body)


def refused(quarantine: Quarantine, asked: Request, now: float) -> bool:
    try:
        quarantine.check(asked, now)
    except RequestQuarantined:
        return True
    return False


def test_the_same_body_on_the_same_path_is_refused_until_its_time_is_over() -> None:
    quarantine = Quarantine()
    quarantine.put(request(b"poison"), 100.0)
    assert refused(quarantine, request(b"poison"), 100.0)
    assert refused(quarantine, request(b"poison"), 99.9 + QUARANTINE_S)
    assert not refused(quarantine, request(b"poison "), 101.0)
    assert not refused(quarantine, request(b"poison", b"/v1/chat/completions"), 101.0)
    assert not refused(quarantine, request(b"poison"), 100.0 + QUARANTINE_S)
    assert len(quarantine) == 0
    assert quarantine.total == 1


def test_table_is_bounded_and_lets_the_oldest_go() -> None:
    quarantine = Quarantine()
    for number in range(MAX_SUSPECTS + 1):
        quarantine.put(request(b"%d" % number), 0.0)
    assert len(quarantine) == MAX_SUSPECTS
    assert not refused(quarantine, request(b"0"), 1.0)
    assert refused(quarantine, request(b"1"), 1.0)


def test_second_offence_begins_the_time_anew() -> None:
    quarantine = Quarantine()
    quarantine.put(request(b"a"), 0.0)
    quarantine.put(request(b"b"), 1.0)
    quarantine.put(request(b"a"), 500.0)
    assert refused(quarantine, request(b"a"), 1.0 + QUARANTINE_S)
    assert not refused(quarantine, request(b"b"), 1.0 + QUARANTINE_S)


def test_two_deaths_make_a_suspect_where_little_else_dies() -> None:
    quarantine = Quarantine()
    quarantine.died("a", 10.0)
    quarantine.died("a", 10.1)  # a second request of the same death
    assert not quarantine.suspects(1)
    quarantine.died("b", 12.0)
    assert quarantine.suspects(2)


def test_where_replicas_die_all_the_time_two_deaths_prove_little_and_four_enough() -> None:
    quarantine = Quarantine()
    for number in range(10):
        quarantine.died(number % 4, 5.0 * number)
    assert [quarantine.suspects(deaths) for deaths in (2, 3, 4)] == [False, False, True]
    quarantine.died("a", 1000.0)
    quarantine.died("b", 1001.0)
    assert quarantine.suspects(2), "what died long ago is forgotten"


def test_log_has_the_digest_and_no_word_of_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        message = Quarantine().put(request(b"secret words"), 0.0).message
    assert "sha256" in caplog.text
    assert "secret" not in caplog.text + message
    assert "change the request" in message
