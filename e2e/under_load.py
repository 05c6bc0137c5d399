"""Load in the background of a scenario: `with under_load(...)` ends in a line of figures, and in no failed request."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Self

from e2e.load_client import LoadClient, Record, Summary, summary
from e2e.waiting import wait_until

RATE = float(os.environ.get("E2E_RATE", "6"))
HISTORY = Path(os.environ.get("E2E_OUT", Path(__file__).parents[1] / ".cluster" / "e2e"))
SHOWN = 10  # failed requests of a report
# Requests open at once: more than engines run, so that they queue, but each ends well within a drain on slow cores.
OPEN = 32
ANSWER_TIMEOUT_S = 240.0


class Load:
    """A load client in a thread, so that a scenario can be written as plain steps."""

    def __init__(self, title: str, url: str, models: Sequence[str], max_tokens: int = 16) -> None:
        self.title = title
        self.records: list[Record] = []
        self._url, self._models, self._max_tokens = url, models, max_tokens
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def start(self) -> Self:
        self._thread.start()
        self._begun.wait()
        return self

    def answered_by(self, since_s: float = 0.0) -> set[str]:
        """Replicas that have answered, whole, what was sent after that time."""
        return {each.replica for each in list(self.records) if each.sent_s > since_s and not each.failed}

    def wait_for(self, replicas: int, since_s: float = 0.0) -> None:
        """Until so many different replicas have answered, however long that takes on slow cores."""
        what = f"answers of {replicas} replicas"
        wait_until(lambda: len(self.answered_by(since_s)) >= replicas, what, ANSWER_TIMEOUT_S)

    def stop(self) -> Summary:
        """Sends nothing more, waits for the last answer, prints the figures and writes the history."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        return report(self.title, self.records)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with LoadClient(
            self._url, self._models, max_tokens=self._max_tokens, concurrency=OPEN
        ) as client:
            self.records = client.records
            self._begun.set()
            await client.run(RATE, self._stop)


@contextmanager
def under_load(title: str, url: str, models: Sequence[str]) -> Iterator[Load]:
    """Load before, while and after what happens inside; AssertionError if one request failed."""
    load = Load(title, url, models).start()
    try:
        time.sleep(3)
        yield load
        time.sleep(3)
    finally:
        total = load.stop()
    assert not total.failed, failures(total)
    assert total.streams > 0
    assert total.requests > total.streams


def report(title: str, records: Sequence[Record]) -> Summary:
    """Prints one line; the history of every request goes to $E2E_OUT."""
    total = summary(records)
    print(f"\n{title}: {total}", flush=True)
    HISTORY.mkdir(parents=True, exist_ok=True)
    history = HISTORY / f"{title.replace(' ', '-')}.jsonl"
    history.write_text("".join(json.dumps(asdict(each)) + "\n" for each in records))
    return total


def failures(total: Summary) -> str:
    return "\n".join([f"{len(total.failed)} failed:", *map(str, total.failed[:SHOWN])])


def burst(title: str, url: str, model: str, count: int) -> Summary:
    """`count` requests at once, until the last has ended."""

    async def run() -> list[Record]:
        async with LoadClient(url, [model]) as client:
            await client.burst(count)
            return client.records

    return report(title, asyncio.run(run()))


def ask(url: str, model: str) -> Record:
    """One plain request."""

    async def run() -> Record:
        async with LoadClient(url, [model], max_tokens=4) as client:
            return await client.ask(model, streamed=False)

    return asyncio.run(run())


def ask_again(url: str, model: str, questions: Sequence[str], max_tokens: int) -> dict[str, str]:
    """The same questions as streams, a few at once, while nothing disturbs them: the text of each answer."""

    async def run() -> list[Record]:
        async with LoadClient(url, [model], max_tokens=max_tokens, concurrency=4) as client:
            await client.ask_all(questions)
            return client.records

    records = asyncio.run(run())
    assert not summary(records).failed, failures(summary(records))
    return {each.question: each.text for each in records}
