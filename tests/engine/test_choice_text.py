from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_engine.choice_text import ChoiceText
from shoal_engine.messages import Output
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.server.generation import join
from shoal_engine.server.shape import Choice
from tests.engine.server.running import model_text
from tests.engine.server.scripted_engine import entry

TEXT = "Es grüßt der 🦊 aus Österreich, und zwar herzlich.\n\nEnde STOP hier."


def outputs_of(text: str, finish: str = "length") -> list[Output]:
    ids = model_text().tokenizer.encode(text, add_special_tokens=False)
    return [
        Output("1", [token], [entry(token, 1)], finish_reason=finish if i == len(ids) - 1 else None)
        for i, token in enumerate(ids)
    ]


def gathered(outputs: list[Output], **params: Any) -> tuple[Choice, ChoiceText]:
    text = ChoiceText(model_text().tokenizer, [], SamplingParams(max_tokens=None, **params))
    choice = Choice()
    for output in outputs:
        choice.add(text.advance(output))
    return choice, text


def merged(outputs: list[Output], cuts: list[int]) -> list[Output]:
    """`outputs` as a slow client sees them: runs of them melted into one."""
    result: list[Output] = []
    for i, output in enumerate(outputs):
        result.append(output) if i in cuts or not result else result.append(join(result.pop(), output))
    return result


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    stop=st.sampled_from([(), ("STOP",), ("grüßt", "x"), ("ich, und",), ("🦊",), ("\n\n",)]),
)
def test_how_outputs_melt_together_changes_neither_text_nor_tokens_nor_logprobs(
    seed: int, stop: tuple[str, ...]
) -> None:
    outputs = outputs_of(TEXT)
    chance = random.Random(seed)
    cuts = sorted(chance.sample(range(len(outputs)), chance.randrange(len(outputs))))
    alone, _ = gathered(outputs, stop=stop)
    together, _ = gathered(merged(outputs, cuts), stop=stop)
    assert together == alone


@pytest.mark.parametrize(
    ("stop", "include", "text", "reason"),
    [
        (("STOP",), False, TEXT.split("STOP")[0], "STOP"),
        (("STOP",), True, TEXT.split("STOP")[0] + "STOP", "STOP"),
        (("Ende", "grüßt"), False, "Es ", "grüßt"),
        (("🦊",), False, "Es grüßt der ", "🦊"),
        (("nirgends",), False, TEXT, None),
        (("hier..",), False, TEXT, None),
    ],
)
def test_text_ends_at_a_stop_string(
    stop: tuple[str, ...], include: bool, text: str, reason: str | None
) -> None:
    choice, state = gathered(outputs_of(TEXT), stop=stop, include_stop_str_in_output=include)
    assert choice.text == text
    assert choice.stop_reason == reason
    assert choice.finish_reason == ("length" if reason is None else "stop")
    assert state.stopped_by_text is (reason is not None)
    assert len(choice.token_ids) == len(choice.logprobs) == state.num_tokens
    assert (state.num_tokens < len(outputs_of(TEXT))) is (reason is not None)


def test_a_stop_string_counts_only_after_min_tokens() -> None:
    outputs = outputs_of("STOP and then some more STOP end")
    early, _ = gathered(outputs, stop=("STOP",))
    late, _ = gathered(outputs, stop=("STOP",), min_tokens=5)
    assert early.text == ""
    assert late.text == "STOP and then some more "


def test_the_token_that_stops_is_counted_and_says_nothing_unless_asked() -> None:
    outputs = outputs_of("one two", finish="stop")
    silent, state = gathered(outputs)
    assert (silent.text, state.num_tokens) == ("one", len(outputs))
    assert silent.token_ids == [output.token_ids[0] for output in outputs]
    told, _ = gathered(outputs, include_stop_str_in_output=True)
    assert told.text == "one two"


def test_half_a_character_at_the_end_is_not_lost_silently() -> None:
    fox = outputs_of("🦊")
    assert len(fox) > 1
    choice, _ = gathered(
        [*fox[:-2], Output("1", fox[-2].token_ids, fox[-2].logprobs, finish_reason="length")]
    )
    assert choice.text.strip("\N{REPLACEMENT CHARACTER}") == ""
    assert len(choice.token_ids) == len(fox) - 1


def test_a_silent_choice_says_and_counts_nothing_but_hands_over_the_prompts_logprobs() -> None:
    text = ChoiceText(model_text().tokenizer, [5], SamplingParams(max_tokens=1), silent=True)
    delta = text.advance(Output("1", [7], prompt_logprobs=[None], finish_reason="length"))
    assert (delta.text, delta.token_ids, delta.prompt_logprobs, delta.finish_reason) == (
        "",
        [],
        [None],
        "length",
    )
    assert text.num_tokens == 0
