"""Streams that wait for a replica: they try when something changes, hear pings, and are given up in time."""

from __future__ import annotations

import asyncio

from shoal_router.interrupted import PING_EVERY_S, Interrupted
from tests.router.conftest import Run


class Stream:
    """One that finds a replica after a number of attempts."""

    def __init__(self, room: Interrupted, until_s: float, attempts: int = 1000) -> None:
        self.room = room
        self.until_s = until_s
        self.left = attempts
        self.pings = 0
        self.given_up = False
        room.wait(self, until_s)

    def attempt(self) -> None:
        self.left -= 1
        if self.left:
            self.room.wait(self, self.until_s)
        else:
            self.room.drop(self)

    def ping(self) -> None:
        self.pings += 1

    def give_up(self) -> None:
        self.given_up = True


def test_all_try_once_per_change_and_who_finds_a_replica_waits_no_more(run: Run) -> None:
    async def scenario() -> None:
        room = Interrupted(lambda: 0.0)
        one, two = Stream(room, 9.0, attempts=1), Stream(room, 9.0, attempts=3)
        for _ in range(5):
            room.changed()  # several changes in one turn of the loop are one
        await asyncio.sleep(0)
        assert (one.left, two.left) == (0, 2)
        assert list(room.streams) == [two]
        for _ in range(2):
            room.changed()
            await asyncio.sleep(0)
        assert not room.streams

    run(scenario())


def test_deadline_is_kept_through_attempts_and_told_once(run: Run) -> None:
    now = 0.0

    async def scenario() -> None:
        nonlocal now
        room = Interrupted(lambda: now)
        short, long = Stream(room, 1.0), Stream(room, 50.0)
        for seconds in (0.0, 0.5, 1.0):
            now = seconds
            room.sweep()
            await asyncio.sleep(0)
        assert (short.given_up, long.given_up) == (True, False)
        assert list(room.streams) == [long]
        attempts = short.left
        room.sweep()
        await asyncio.sleep(0)
        assert short.left == attempts

    run(scenario())


def test_waiting_clients_hear_a_ping_now_and_then_but_none_at_once(run: Run) -> None:
    now = 100.0

    async def scenario() -> None:
        nonlocal now
        room = Interrupted(lambda: now)
        stream = Stream(room, 1000.0)
        room.sweep()
        assert stream.pings == 0
        for _ in range(100):
            now += PING_EVERY_S / 10
            room.sweep()
            await asyncio.sleep(0)
        assert 9 <= stream.pings <= 10

    run(scenario())
