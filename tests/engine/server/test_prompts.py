from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from shoal_engine.errors import ContextTooLong, InvalidRequest, QueueFull
from shoal_engine.server.limits import Limits
from shoal_engine.server.prompts import Lane, Prompts, turn_of
from shoal_engine.server.protocol import Message
from tests.engine.server.running import model_text


@pytest_asyncio.fixture
async def prompts() -> AsyncIterator[Prompts]:
    text = model_text()
    made = Prompts(text.tokenizer, text.template, Limits(), text.longest_token_bytes)
    yield made
    made._middle.close()
    made._long.close()


@pytest.mark.parametrize("chars", [10, 1999, 2001, 65_000, 200_000])
async def test_a_text_has_the_same_tokens_whatever_lane_it_takes(prompts: Prompts, chars: int) -> None:
    text = ("The quick brown fox. " * (chars // 21 + 1))[:chars]
    ids = await prompts.of_text(text, special=True, max_tokens=None)
    assert ids == model_text().tokenizer.encode(text)
    assert await prompts.of_text(text, special=True, max_tokens=len(ids)) == ids


@pytest.mark.parametrize(
    ("text", "max_tokens", "fits"),
    [
        ("word " * 100, 100, None),
        ("word " * 4000, 1000, False),  # by its beginning
        ("a" * 100_000, 1000, False),  # by its length alone
        (" " * 60_000, 1000, True),  # 80 spaces a token: the beginning does not tell
    ],
)
async def test_a_text_beyond_the_context_is_refused_and_one_within_never(
    prompts: Prompts, text: str, max_tokens: int, fits: bool | None
) -> None:
    if fits is False:
        with pytest.raises(ContextTooLong) as caught:
            await prompts.of_text(text, special=False, max_tokens=max_tokens)
        assert caught.value.code == "context_length_exceeded"
        return
    ids = await prompts.of_text(text, special=False, max_tokens=max_tokens)
    assert ids == model_text().tokenizer.encode(text, add_special_tokens=False)


async def test_the_loop_goes_on_while_a_long_text_is_tokenised(prompts: Prompts) -> None:
    long = asyncio.create_task(
        prompts.of_text("int main() { return 0; }\n" * 60_000, special=False, max_tokens=None)
    )
    turns = 0
    while not long.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert len(await long) > 500_000
    assert turns > 50  # a held interpreter lock would leave one or two


async def test_a_lane_refuses_what_would_wait_behind_too_many() -> None:
    lane = Lane("test", threads=1, waiting=2)
    gate = threading.Event()
    running = [asyncio.create_task(lane.run(gate.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await lane.run(gate.wait)
    gate.set()
    assert await asyncio.gather(*running) == [True] * 3
    assert await lane.run(lambda: 5) == 5
    lane.close()


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[3].content[0]"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]},
            "messages[3].content[1]",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[3].content[0].text"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[3].tool_calls"),
    ],
)
def test_what_is_no_text_is_refused_and_its_place_named(message: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        turn_of(Message.model_validate(message), 3)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("message", "turn"),
    [
        ({"role": "developer", "content": "a"}, {"role": "system", "content": "a"}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "a\nb"},
        ),
        ({"role": "user", "content": "a", "name": "ann"}, {"role": "user", "content": "a", "name": "ann"}),
    ],
)
def test_a_message_becomes_plain_text(message: dict[str, Any], turn: dict[str, str]) -> None:
    assert turn_of(Message.model_validate(message), 0) == turn
