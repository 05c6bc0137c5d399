"""Text that comes in pieces is the same text, and a stop string is found wherever the pieces are cut."""

from __future__ import annotations

import codecs
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_engine.config import read_config
from shoal_engine.detokenizer import Detokenizer, StopStrings
from shoal_engine.tokenizer import Tokenizer, load_tokenizer
from tests.engine.gguf_files import (
    BPE_METADATA,
    SPM_METADATA,
    SPM_TOKENS,
    model_metadata,
    model_tensors,
    write_gguf,
)

KINDS = {"byte-level": BPE_METADATA, "sentencepiece": SPM_METADATA}


@cache
def tokenizer(kind: str) -> Tokenizer:
    with TemporaryDirectory() as folder:
        metadata = model_metadata("llama") | KINDS[kind]
        path = write_gguf(Path(folder) / "m.gguf", metadata, model_tensors("llama", len(SPM_TOKENS)))
        return load_tokenizer(path, read_config(path))


def ids(kind: str) -> st.SearchStrategy[list[int]]:
    """Ids of any text, and ids at random: specials, halves of characters, and numbers that are no token."""
    at_random = st.lists(st.integers(0, tokenizer(kind).vocab_size + 3), max_size=12)
    return st.one_of(at_random, st.text(max_size=12).map(tokenizer(kind).encode))


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, list[int], list[int], list[int], bool]:
    kind = draw(st.sampled_from(sorted(KINDS)))
    prompt, answer = draw(ids(kind)), draw(ids(kind))
    cuts = sorted(draw(st.lists(st.integers(0, len(answer)), max_size=4)))
    return kind, prompt, answer, cuts, draw(st.booleans())


def certain_text(tokens: Tokenizer, prompt: list[int], skip: bool) -> str:
    """The prompt's text as far as nothing behind it can change it."""
    visible = b"".join(tokens.visible_bytes(token_id, skip) for token_id in prompt)
    visible = visible.removeprefix(b" ") if tokens.strips_space else visible
    return codecs.getincrementaldecoder("utf-8")("replace").decode(visible)


@settings(max_examples=400, deadline=None)
@given(cases())
def test_pieces_add_up_to_the_decoded_text(case: tuple[str, list[int], list[int], list[int], bool]) -> None:
    kind, prompt, answer, cuts, skip = case
    tokens = tokenizer(kind)
    detokenizer = Detokenizer(tokens, prompt, skip)
    edges = [0, *cuts, len(answer)]
    pieces = [detokenizer.push(answer[start:end]) for start, end in pairwise(edges)]
    text = "".join(pieces) + detokenizer.flush()
    assert certain_text(tokens, prompt, skip) + text == tokens.decode(prompt + answer, skip)


def test_an_incomplete_character_waits_for_its_last_byte() -> None:
    tokens = tokenizer("byte-level")
    detokenizer = Detokenizer(tokens)
    first, second, third = tokens.encode("日")
    assert [detokenizer.push([each]) for each in (first, second, third)] == ["", "", "日"]
    assert detokenizer.push([first, second]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_a_character_begun_in_the_prompt_is_finished_in_the_answer() -> None:
    tokens = tokenizer("byte-level")
    *begun, last = tokens.encode("a日")
    assert Detokenizer(tokens, begun).push([last]) == "日"


def test_an_answer_keeps_the_space_that_a_text_alone_would_lose() -> None:
    tokens = tokenizer("sentencepiece")
    hello, world = tokens.token_id("▁hello"), tokens.token_id("▁world")
    assert hello is not None
    assert world is not None
    assert Detokenizer(tokens, [hello]).push([world]) == " world"
    assert Detokenizer(tokens, []).push([world]) == "world"
    bos = tokens.bos_token_id
    assert bos is not None
    assert Detokenizer(tokens, [bos]).push([world]) == "world"
    assert Detokenizer(tokens, [bos], skip_special_tokens=False).push([world]) == " world"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_show_only_when_asked_for(kind: str) -> None:
    tokens = tokenizer(kind)
    end = tokens.eos_token_ids[0]
    assert Detokenizer(tokens, [], skip_special_tokens=True).push([end]) == ""
    assert Detokenizer(tokens, [], skip_special_tokens=False).push([end]) == tokens.token_text(end)


def first_stop(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """By definition: look at every beginning of the text, shortest first."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


LETTERS = st.text("ab", max_size=14)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


@settings(max_examples=600, deadline=None)
@given(text=LETTERS, stops=STOPS, include=st.booleans(), cuts=st.lists(st.integers(0, 14), max_size=5))
def test_a_stop_string_is_found_wherever_the_text_is_cut(
    text: str, stops: list[str], include: bool, cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    watcher, shown, hit = StopStrings(stops, include), "", None
    for start, end in pairwise(edges):
        piece, hit = watcher.push(text[start:end])
        shown += piece
        if hit is not None:
            break
        held = text[len(shown) : end]
        assert held == longest_beginning(text[:end], stops)  # not a character more, nor less
    assert (shown + watcher.flush(), hit) == first_stop(text, stops, include)


def longest_beginning(text: str, stops: list[str]) -> str:
    ends = [text[at:] for at in range(len(text))]
    return next((end for end in ends if any(stop.startswith(end) for stop in stops)), "")


def test_a_long_stop_string_costs_no_more_than_its_length() -> None:
    """A repetitive stop string and text are the worst case of searching again at every character."""
    watcher = StopStrings(["a" * 50_000 + "b"])
    assert watcher.push("a" * 60_000)[1] is None
    assert watcher.push("b") == ("", "a" * 50_000 + "b")
