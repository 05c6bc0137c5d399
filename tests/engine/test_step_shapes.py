"""Which steps are recorded before the engine is ready, and what serves until the others are. Needs no GPU."""

from __future__ import annotations

import pytest

from shoal_engine.config import ModelConfig
from shoal_engine.step_shapes import (
    PROMPT_REQUESTS,
    STAND_INS,
    Shape,
    StandIns,
    common_shapes,
    decode_rows,
    first_shapes,
    stand_in,
)


def decodes(rows: int, *, shares: bool = False, draws: bool = True) -> Shape:
    return Shape(rows, rows, rows, shares, draws)


def prompts(tokens: int) -> Shape:
    return Shape(tokens, PROMPT_REQUESTS, 0)


def test_few_steps_of_each_kind_are_recorded_first_and_the_largest_of_each_is_among_them() -> None:
    config = ModelConfig(
        architecture="Qwen3ForCausalLM", vocab_size=151936, hidden_size=1024, num_layers=28, num_heads=16,
        num_kv_heads=8, head_dim=128, intermediate_size=3072, max_position_embeddings=40960,
    )  # fmt: skip
    first = first_shapes(common_shapes(config, 100))
    assert [shape.tokens for shape in first if not shape.num_decodes] == [2048, 512, 128]
    assert [shape for shape in first if shape.num_decodes] == [decodes(rows) for rows in (104, 32, 8, 1)]


@pytest.mark.parametrize("most", [1, 3, 12, 100, 256])
def test_every_number_of_requests_has_a_common_step(most: int) -> None:
    config = ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=99, hidden_size=4096, num_layers=32, num_heads=32,
        num_kv_heads=8, head_dim=128, intermediate_size=14336, max_position_embeddings=4096,
    )  # fmt: skip
    shapes = common_shapes(config, most)
    for rows in range(1, most + 1):
        assert decodes(decode_rows(rows)) in shapes
    assert any(shape.shares_prefixes for shape in shapes) == (most > 1)


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
        (decodes(4, draws=False), None),
        (decodes(2), decodes(8)),
        (prompts(64), prompts(128)),
        (decodes(4, shares=True), decodes(8)),  # slower and the same
        (decodes(16, shares=True), decodes(32, shares=True)),
        (prompts(16), None),  # eight times its tokens
        (prompts(256), prompts(512)),
        (prompts(1024), None),
    ],
)
def test_the_smallest_recorded_step_of_its_kind_stands_in(shape: Shape, serves: Shape | None) -> None:
    assert stand_in(shape, RECORDED) == serves


def test_another_step_stands_in_for_a_while_and_again_if_this_one_could_not_be_recorded() -> None:
    stand_ins = StandIns()
    for _ in range(2):
        assert [stand_ins.next_for(decodes(16), RECORDED) for _ in range(STAND_INS)] == [
            decodes(32)
        ] * STAND_INS
        assert stand_ins.next_for(decodes(16), RECORDED) is None
    assert stand_ins.next_for(decodes(72), RECORDED) is None
