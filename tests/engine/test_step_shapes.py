"""Which steps are recorded before the engine is ready, and what serves until the others are. Needs no GPU."""

from __future__ import annotations

import pytest

from shoal_engine.step_shapes import PROMPT_REQUESTS, Shape, first_shapes, stand_in


def decodes(rows: int, *, shares: bool = False, draws: bool = True) -> Shape:
    return Shape(rows, rows, rows, shares, draws)


def prompts(tokens: int) -> Shape:
    return Shape(tokens, PROMPT_REQUESTS, 0)


def test_few_steps_of_each_kind_are_recorded_first_and_the_largest_of_each_is_among_them() -> None:
    shapes = [prompts(tokens) for tokens in (16, 128, 512, 1024)]
    shapes += [decodes(rows, draws=draws) for rows in (1, 2, 4, 8, 16, 32, 104) for draws in (True, False)]
    shapes += [decodes(2, shares=True), decodes(104, shares=True)]
    first = first_shapes(shapes)
    assert [shape.tokens for shape in first if not shape.num_decodes] == [128, 512, 1024]
    assert [shape for shape in first if shape.num_decodes] == [decodes(rows) for rows in (1, 8, 32, 104)]


def test_one_row_alone_is_recorded_first() -> None:
    assert first_shapes([decodes(1)]) == [decodes(1)]


RECORDED = [
    decodes(1),
    decodes(8),
    decodes(32),
    decodes(32, shares=True),
    decodes(64),
    prompts(128),
    prompts(512),
]


@pytest.mark.parametrize(
    ("shape", "serves"),
    [
        (decodes(4), decodes(8)),
        (decodes(16), decodes(32)),
        (decodes(40), decodes(64)),
        (decodes(72), None),
        (decodes(4, draws=False), None),  # one that draws would overwrite what the step before has drawn
        (decodes(4, shares=True), decodes(8)),  # slower and the same
        (decodes(16, shares=True), decodes(32, shares=True)),
        (prompts(16), prompts(128)),
        (prompts(256), prompts(512)),
        (prompts(1024), None),
    ],
)
def test_the_smallest_recorded_step_of_its_kind_stands_in(shape: Shape, serves: Shape | None) -> None:
    assert stand_in(shape, RECORDED) == serves
