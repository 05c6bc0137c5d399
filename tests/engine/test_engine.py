"""One request's misfortune is nobody else's: failing steps, NaN logits, prompt logprobs, refusals at the door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal_api.options import ModelOptions
from shoal_engine.engine import Engine
from shoal_engine.errors import (
    BadNumbers,
    ContextTooLong,
    InvalidRequest,
    KVCacheExhausted,
    ModelLoadError,
    QueueFull,
)
from shoal_engine.messages import Output, Submit
from shoal_engine.plan import Plan
from shoal_engine.sampling_params import SamplingParams
from tests.builders import greedy, prompts, save_tiny

NEW_TOKENS = 12


class Faulty:
    """A runner that breaks when told to: `fault(plan, logits rows)` may raise or spoil."""

    def __init__(
        self, runner: Any, on_run: Callable[[Plan], None], spoil: Callable[[Plan], list[int]]
    ) -> None:
        self._runner, self._on_run, self._spoil = runner, on_run, spoil
        self.plans: list[Plan] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, plan: Plan, asked: Any) -> Any:
        self.plans.append(plan)
        self._on_run(plan)
        return self._runner.run(plan, asked)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self._runner.logits(hidden)
        for row in self._spoil(self.plans[-1]):
            logits[row] = float("nan")
        return logits


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]], list[list[int]]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    model = save_tiny("llama3-rope", folder)
    texts = prompts(8, 199, low=5, high=60)
    return folder, texts, [greedy(model, text, NEW_TOKENS) for text in texts]


def load(folder: Path, **options: Any) -> Engine:
    return Engine.load(
        ModelOptions(model=str(folder), dtype="float32", num_threads=1, **{"max_model_len": 128, **options})
    )


def faulty(
    folder: Path,
    on_run: Callable[[Plan], None] = lambda _: None,
    spoil: Callable[[Plan], list[int]] = lambda _: [],
) -> Engine:
    real = load(folder)
    runner: Any = Faulty(real.runner, on_run, spoil)
    return Engine(runner, real.scheduler, real.sampler, real.config, real.model_path, real.ready)


def submit(name: str, prompt: list[int], **params: Any) -> Submit:
    options = {"temperature": 0.0, "max_tokens": NEW_TOKENS, "ignore_eos": True, **params}
    return Submit(name, prompt, SamplingParams(**options))


def drive(engine: Engine) -> dict[str, list[Output]]:
    outputs: dict[str, list[Output]] = {}
    for _ in range(2000):
        if not engine.has_work:
            return outputs
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
        engine.scheduler.check_integrity()
    raise AssertionError("the engine never became idle")


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def test_a_step_that_fails_once_costs_no_request_its_answer(tiny: Any) -> None:
    folder, texts, expected = tiny
    broken = {3, 9}

    def fail_twice(plan: Plan) -> None:
        if len(runs) in broken:
            runs.append(plan)
            raise RuntimeError("a passing fault")
        runs.append(plan)

    runs: list[Plan] = []
    engine = faulty(folder, fail_twice)
    for i, text in enumerate(texts):
        engine.add(submit(f"r{i}", text))
    outputs = drive(engine)
    assert [tokens(outputs[f"r{i}"]) for i in range(len(texts))] == expected


def test_a_request_that_breaks_every_step_ends_alone(tiny: Any) -> None:
    folder, texts, expected = tiny

    def poisoned(plan: Plan) -> None:
        if any(chunk.request.id == "poison" for chunk in plan.chunks):
            raise MemoryError

    engine = faulty(folder, poisoned)
    engine.add(submit("poison", [5] * 100))  # the largest chunk of the first step
    for i, text in enumerate(texts):
        engine.add(submit(f"r{i}", text))
    outputs = drive(engine)
    assert outputs["poison"][-1].finish_reason == "error"
    assert [tokens(outputs[f"r{i}"]) for i in range(len(texts))] == expected


def test_nan_logits_end_their_request_and_leave_neighbours_identical(tiny: Any) -> None:
    folder, texts, expected = tiny

    def third_row_of_decode(plan: Plan) -> list[int]:
        rows = [chunk.request.id for chunk in plan.chunks if chunk.samples]
        late = [
            chunk.request for chunk in plan.chunks if chunk.samples and chunk.request.num_output_tokens >= 4
        ]
        return [rows.index("r2")] if any(request.id == "r2" for request in late) else []

    engine = faulty(folder, spoil=third_row_of_decode)
    for i, text in enumerate(texts):
        engine.add(submit(f"r{i}", text))
    outputs = drive(engine)
    assert outputs["r2"][-1].finish_reason == "error"
    assert outputs["r2"][-1].error_code == "logits_not_finite"
    others = [i for i in range(len(texts)) if i != 2]
    assert [tokens(outputs[f"r{i}"]) for i in others] == [expected[i] for i in others]


@pytest.mark.parametrize(
    "params", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 5, "presence_penalty": 1.0}]
)
def test_a_row_spoilt_by_a_neighbours_blocks_is_computed_again_with_the_same_result(
    tiny: Any, params: dict[str, Any]
) -> None:
    folder, texts, _ = tiny
    text = max(texts, key=len)

    def run(spoil: Callable[[Plan], list[int]]) -> dict[str, list[int]]:
        engine = faulty(folder, spoil=spoil)
        for name in ("first", "second"):
            engine.add(submit(name, text, **params))
        return {name: tokens(outputs) for name, outputs in drive(engine).items()}

    def once_for_the_second(plan: Plan) -> list[int]:
        rows = [chunk.request.id for chunk in plan.chunks if chunk.samples]
        if "second" not in rows or spoilt:
            return []
        spoilt.append(plan.step)
        return [rows.index("second")]

    spoilt: list[int] = []
    assert run(once_for_the_second) == run(lambda _: [])
    assert spoilt


def test_a_model_that_computes_nan_for_everybody_ends_the_process(tiny: Any) -> None:
    folder, texts, _ = tiny
    engine = faulty(folder, spoil=lambda plan: list(range(plan.num_samples)))
    for i in range(20):
        engine.add(submit(f"r{i}", texts[i % len(texts)]))
    with pytest.raises(BadNumbers, match="check the checkpoint"):
        drive(engine)


def test_prompt_logprobs_equal_transformers_whatever_the_chunks(tiny: Any) -> None:
    from transformers import AutoModelForCausalLM

    folder, texts, _ = tiny
    text = max(texts, key=len)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = model(torch.tensor([text])).logits[0].log_softmax(-1)
    want = [float(logprobs[i, token]) for i, token in enumerate(text[1:])]
    for budget in (512, 9):
        engine = load(folder, max_num_batched_tokens=budget)
        engine.add(submit("warm", text))  # its blocks must not be used: their logits are needed
        drive(engine)
        engine.add(submit("r", text, prompt_logprobs=2))
        found = drive(engine)["r"][0].prompt_logprobs
        assert found is not None
        assert found[0] is None
        got = [one.chosen.logprob for one in found[1:] if one is not None]
        assert got == pytest.approx(want, abs=1e-3)
        assert all(len(one.top) == 2 for one in found[1:] if one is not None)


def test_an_abort_in_any_state_frees_everything(tiny: Any) -> None:
    folder, texts, expected = tiny
    engine = load(folder, max_num_batched_tokens=16)
    for steps in range(1, 12):
        engine.add(submit("gone", texts[0]))
        engine.add(submit("stays", texts[1]))
        kept: list[Output] = []
        for _ in range(steps):
            kept += [output for output in engine.step() if output.id == "stays"]
        engine.abort(["gone", "gone", "unknown"])
        kept += drive(engine).get("stays", [])
        assert tokens(kept) == expected[1]
        assert engine.stats().kv_cache_usage == 0.0


def test_requests_that_can_never_run_are_refused_at_the_door(tiny: Any) -> None:
    folder, _, _ = tiny
    engine = load(folder, max_num_queued_reqs=1, max_num_seqs=1)
    with pytest.raises(InvalidRequest, match="empty"):
        engine.add(submit("a", []))
    with pytest.raises(ContextTooLong, match="128 tokens"):
        engine.add(submit("a", [5] * 200))
    with pytest.raises(InvalidRequest, match="prompt"):
        engine.add(submit("a", [5, 199]))  # outside the vocabulary
    with pytest.raises(InvalidRequest, match="logit_bias"):
        engine.add(submit("a", [5], logit_bias={7000: 1.0}))
    assert not engine.has_work
    engine.add(submit("a", [5]))
    engine.add(submit("b", [5]))
    with pytest.raises(QueueFull) as refused:
        engine.add(submit("c", [5]))
    assert refused.value.retry_after_s >= 1


def test_a_prompt_larger_than_the_cache_cannot_be_loaded_for(tiny: Any) -> None:
    folder, _, _ = tiny
    with pytest.raises(ModelLoadError, match="--max-model-len"):
        load(folder, kv_cache_memory_bytes=50_000)
    assert issubclass(KVCacheExhausted, Exception)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"device": "cuda"}, "--device"),
        ({"tensor_parallel_size": 2}, "--tensor-parallel-size"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size"),
        ({"quantization": "int8"}, "--quantization"),
        ({"enable_lora": True}, "--enable-lora"),
        ({"speculative_method": "ngram"}, "--speculative-method"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype"),
        ({"max_model_len": 100_000}, "--max-model-len"),
    ],
)
def test_options_this_engine_does_not_have_are_refused_by_name(
    tiny: Any, options: dict[str, Any], flag: str
) -> None:
    folder, _, _ = tiny
    with pytest.raises(ModelLoadError, match=flag):
        load(folder, **options)


def test_dummy_weights_need_only_a_config(tiny: Any, tmp_path: Path) -> None:
    folder, texts, _ = tiny
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    answers = []
    for _ in range(2):
        engine = load(tmp_path, load_format="dummy", seed=3)
        engine.add(submit("r", texts[0]))
        answers.append(tokens(drive(engine)["r"]))
    assert answers[0] == answers[1]
    assert len(answers[0]) == NEW_TOKENS
