"""One worker per key, nothing forgotten, nothing done twice without cause."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_api.kube import ApiError
from shoal_operator.work_queue import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, WorkQueue, backoff_s


class Worker:
    """Counts its work; `gate` holds it back, `failing` keys raise."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()
        self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing: set[str] = set()
        self.again_s: float | None = None

    async def __call__(self, key: str) -> float | None:
        self.busy[key] += 1
        assert self.busy[key] == 1, "two workers on one key"
        self.most_at_once = max(self.most_at_once, self.busy.total())
        try:
            await self.gate.wait()
            if key in self.failing:
                raise RuntimeError(key)
        finally:
            self.busy[key] -= 1
        self.done[key] += 1
        return self.again_s


@contextlib.asynccontextmanager
async def queue_of(worker: Worker, concurrency: int = 8):
    queue = WorkQueue(worker, concurrency=concurrency)
    try:
        yield queue
    finally:
        await queue.close()


async def settled(queue: WorkQueue) -> None:
    async with asyncio.timeout(10):
        while len(queue):
            await asyncio.sleep(0)


async def test_a_key_added_often_is_worked_on_once():
    worker = Worker()
    async with queue_of(worker) as queue:
        for _ in range(100):
            queue.add("a")
        await settled(queue)
    assert worker.done == {"a": 1}


async def test_a_key_added_during_its_work_is_worked_on_once_more():
    worker = Worker()
    worker.gate.clear()
    async with queue_of(worker) as queue:
        queue.add("a")
        while not worker.busy["a"]:
            await asyncio.sleep(0)
        for _ in range(5):
            queue.add("a")
        worker.gate.set()
        await settled(queue)
    assert worker.done == {"a": 2}


async def test_no_more_than_so_many_at_once():
    worker = Worker()
    worker.gate.clear()
    async with queue_of(worker, concurrency=3) as queue:
        for number in range(10):
            queue.add(str(number))
        for _ in range(50):
            await asyncio.sleep(0)
        worker.gate.set()
        await settled(queue)
    assert worker.most_at_once == 3
    assert worker.done.total() == 10


async def test_a_failure_is_tried_again_and_hurts_nobody_else(caplog: pytest.LogCaptureFixture):
    worker = Worker()
    worker.failing.add("bad")
    async with queue_of(worker) as queue:
        queue.add("bad")
        queue.add("good")
        while "bad failed" not in caplog.text:
            await asyncio.sleep(0)
        worker.failing.clear()
        async with asyncio.timeout(10):
            while not worker.done["bad"]:
                await asyncio.sleep(0.01)
    assert worker.done["good"] == 1


async def test_the_api_server_may_ask_for_a_longer_pause(caplog: pytest.LogCaptureFixture):
    asked_s, loop = 3 * FIRST_BACKOFF_S, asyncio.get_running_loop()
    calls: list[float] = []

    async def work(_: str) -> None:
        calls.append(loop.time())
        if len(calls) == 1:
            raise ApiError(429, "TooManyRequests", "later", retry_after_s=asked_s)

    queue = WorkQueue(work, concurrency=1)
    queue.add("a")
    await asyncio.sleep(0)
    await settled(queue)
    assert len(calls) == 2
    assert calls[1] - calls[0] >= asked_s * 0.99
    assert "Traceback" not in caplog.text  # what the API server says is no bug of ours


async def test_work_may_ask_to_be_called_again():
    worker = Worker()
    worker.again_s = 0.001
    async with queue_of(worker) as queue:
        queue.add("a")
        async with asyncio.timeout(10):
            while worker.done["a"] < 3:
                await asyncio.sleep(0.001)


async def test_the_earlier_time_counts():
    worker = Worker()
    async with queue_of(worker) as queue:
        queue.add("a", after_s=3600)
        queue.add("a")
        queue.add("a", after_s=3600)
        async with asyncio.timeout(10):
            while not worker.done["a"]:
                await asyncio.sleep(0)


async def test_a_forgotten_key_is_not_worked_on():
    worker = Worker()
    async with queue_of(worker) as queue:
        queue.add("a")
        queue.forget("a")
        assert len(queue) == 0


@given(st.integers(1, 10_000))
def test_pauses_grow_to_a_bound(failures: int):
    assert 0 < backoff_s(failures) <= backoff_s(failures + 1) <= LONGEST_BACKOFF_S
