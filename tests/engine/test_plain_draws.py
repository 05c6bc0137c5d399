"""Decodes that draw within the step choose what the sampler would have chosen afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shoal_engine.cuda_sampler import CudaSampler
from shoal_engine.kernels.triton_sampling import SamplingSpace
from shoal_engine.plain_draws import FIELDS, PlainDraws
from shoal_engine.sampler import Sampler
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.step_tail import StepTail

VOCAB, ROWS, PADDED = 300, 3, 4
CPU = torch.device("cpu")


class Event:
    """The host's memory needs none."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture
def samplers(monkeypatch: pytest.MonkeyPatch) -> tuple[Sampler, CudaSampler, SamplingSpace]:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    space = SamplingSpace(PADDED, VOCAB, CPU)
    return Sampler(VOCAB, CPU, 7), CudaSampler(VOCAB, CPU, 7, space), space


def step(space: SamplingSpace, logits: torch.Tensor, asked: PlainDraws) -> tuple[torch.Tensor, torch.Tensor]:
    """As a recorded step does it, with a row of padding."""
    arrays: dict[str, Any] = {name: np.full(PADDED, 9, dtype=kind) for name, kind in FIELDS.items()}
    asked.write(arrays, PADDED)
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    padded = torch.cat((logits, torch.full((PADDED - ROWS, VOCAB), float("nan"))))
    StepTail(lambda hidden: hidden, inputs, space)(padded)
    return space.token_ids[:ROWS], space.ok[:ROWS]


def test_tokens_are_the_samplers_step_by_step(samplers: Any) -> None:
    cpu, gpu, space = samplers
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.9},
        {"temperature": 1.3, "seed": 4},
    ]
    for i, kind in enumerate(kinds):
        for sampler in (cpu, gpu):
            sampler.add(f"r{i}", SamplingParams(max_tokens=9, **kind), [1, 2])
    torch.manual_seed(0)
    ids = ["r0", "r1", "r2"]
    for number in range(6):
        ids = ids[::-1] if number == 3 else ids  # another order is another composition
        logits = 3 * torch.randn(ROWS, VOCAB)
        asked = gpu.ask(ids)
        assert asked is not None
        got = gpu.take(*step(space, logits, asked)).on_host()
        want = cpu.sample(logits, ids)
        assert got.token_ids.tolist() == want.token_ids.tolist()
        assert got.all_ok
        assert got.logprobs() is None


def test_a_row_of_nan_is_told(samplers: Any) -> None:
    _, gpu, space = samplers
    for i in range(ROWS):
        gpu.add(f"r{i}", SamplingParams(temperature=0.5), [1])
    logits = torch.randn(ROWS, VOCAB)
    logits[1, 5] = float("nan")
    asked = gpu.ask(["r0", "r1", "r2"])
    assert gpu.take(*step(space, logits, asked)).on_host().ok.tolist() == [True, False, True]


@pytest.mark.parametrize(
    "more",
    [{"top_p": 0.9}, {"top_k": 5}, {"logprobs": 0}, {"repetition_penalty": 1.1}, {"logit_bias": {3: 1.0}}],
    ids=lambda more: next(iter(more)),
)
def test_one_row_that_asks_for_more_leaves_the_draw_to_the_sampler(
    samplers: Any, more: dict[str, Any]
) -> None:
    _, gpu, _ = samplers
    gpu.add("plain", SamplingParams(temperature=1.0), [1])
    gpu.add("more", SamplingParams(temperature=1.0, **more), [1])
    assert gpu.ask(["plain"]) is not None
    assert gpu.ask(["plain", "more"]) is None
