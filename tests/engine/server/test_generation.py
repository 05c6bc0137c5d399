from __future__ import annotations

import asyncio

import pytest

from shoal_engine.errors import EngineUnavailable
from shoal_engine.messages import Output
from shoal_engine.server.generation import ClientGone, Generation, TooMuchHeld, join
from tests.engine.server.scripted_engine import entry


def test_outputs_melt_in_order_and_keep_what_comes_once() -> None:
    first = Output("1", [5], [entry(5, 1)], prompt_logprobs=[None], num_cached_tokens=16)
    then = Output("1", [6, 7], [entry(6, 1), entry(7, 1)], finish_reason="stop", stop_reason=7)
    both = join(first, then)  # takes over the lists of the first
    assert both.token_ids == [5, 6, 7]
    assert both.logprobs == [entry(5, 1), entry(6, 1), entry(7, 1)]
    assert (both.prompt_logprobs, both.num_cached_tokens) == ([None], 16)
    assert (both.finish_reason, both.stop_reason) == ("stop", 7)


async def test_a_slow_taker_gets_everything_at_once() -> None:
    generation = Generation(0.0)
    for token in range(1000):
        generation.push(token % 2, Output(str(token % 2), [token]))
    news = await generation.take()
    assert {choice: len(output.token_ids) for choice, output in news.items()} == {0: 500, 1: 500}


async def test_an_answer_that_outgrows_its_memory_is_given_up() -> None:
    generation = Generation(0.0, most_held=20)
    for _ in range(2):
        generation.push(0, Output("0", [5, 6], [entry(5, 3), entry(6, 3)]))  # 10 each
        await generation.take()
    generation.release()
    generation.push(0, Output("0", [5, 6], [entry(5, 3), entry(6, 3)], [None, entry(5, 3)]))
    assert await generation.take()
    generation.push(0, Output("0", [5, 6, 7, 8, 9, 10, 11]))
    with pytest.raises(TooMuchHeld):
        await generation.take()


async def test_what_was_produced_can_be_taken_before_the_error() -> None:
    generation = Generation(0.0)
    generation.push(0, Output("0", [1]))
    generation.fail(EngineUnavailable("gone"))
    assert (await generation.take())[0].token_ids == [1]
    with pytest.raises(EngineUnavailable, match="gone"):
        await generation.take()


async def test_a_client_that_leaves_ends_the_waiting() -> None:
    generation = Generation(0.0)
    waiting = asyncio.create_task(generation.take())
    await asyncio.sleep(0)
    generation.leave()
    with pytest.raises(ClientGone):
        await waiting
    with pytest.raises(ClientGone):
        generation.check_client()


async def test_a_nudge_wakes_without_news_and_only_once() -> None:
    generation = Generation(0.0)
    generation.nudge()
    assert await generation.take() == {}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(generation.take(), 0.01)
