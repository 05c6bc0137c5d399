"""Every workload on a tiny real engine: names, counts, fresh prompts; its whole command line is run by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import step_profile
from cases import CASES, FULL, TINY, Bench, warm_up
from published import PUBLISHED
from roofline import Ceilings, Cost
from shapes import SHAPES
from shapes import TINY as TINY_SHAPE
from subjects import open_subject
from torch.autograd import DeviceType

from shoal_engine.config import read_config
from tests.benchmarks.h200.scripted_subject import ScriptedSubject


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = TINY_SHAPE.write(tmp_path_factory.mktemp("model"))
    options = {"device": "cpu", "num_threads": 1, "max_model_len": TINY.max_model_len}
    made = Bench(open_subject("shoal", folder, options), "shoal", Cost(TINY_SHAPE), Ceilings(), TINY)
    assert warm_up(made) > 0
    return made


@pytest.mark.parametrize("name", CASES)
def test_a_workload_gives_figures(bench: Bench, name: str) -> None:
    figures = list(CASES[name](bench))
    names = [f"C batch {batch}" for batch in TINY.batches] if name == "C" else [name]
    assert [figure.name for figure in figures] == names
    for figure in figures:
        assert figure.value > 0
        assert 0 < figure.fraction < 1  # of a GPU's floor, on a CPU
        if name == "D":
            assert figure.details["cached_tokens"] >= (TINY.shared[0] - 1) * TINY.prefix
        else:
            assert figure.details["cached_tokens"] == 0


def test_a_step_is_taken_apart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwatched(call: Callable[[], object], steps: int, wall_us: float) -> str:
        call()  # torch's profiler takes its first 16 seconds to find out that there is no GPU
        return f"{steps} steps"

    monkeypatch.setattr(step_profile, "_kernels", unwatched)
    report = step_profile.report(bench, [1, 3], steps=4)
    for said in ("decode, batch 1:", "decode, batch 3:", "4 steps", "prefill, 2 x 64", "schedule", "launch"):
        assert said in report


def test_kernels_of_a_gpu_count_once_and_calls_into_cuda_stand_apart() -> None:
    def event(key: str, where: DeviceType, host_us: float, device_us: float, count: int) -> Any:
        return SimpleNamespace(
            key=key,
            device_type=where,
            self_cpu_time_total=host_us,
            self_device_time_total=device_us,
            count=count,
        )

    events = [
        event("cudaGraphLaunch", DeviceType.CPU, 40.0, 900.0, 10),
        event("small kernel", DeviceType.CUDA, 0.0, 100.0, 20),
        event("large kernel", DeviceType.CUDA, 0.0, 800.0, 10),
    ]
    lines = step_profile.kernel_lines(events, on_gpu=True, steps=10, wall_us=100.0).splitlines()
    assert lines[0] == "  device: 90 us busy a step (90% of it), 3 kernels"
    assert [line.split(" us  ")[-1] for line in lines[1:3]] == ["large kernel", "small kernel"]
    assert lines[4].split() == ["4.0", "us", "1.0", "x", "4.0", "us", "cudaGraphLaunch"]


def test_parts_of_a_step_are_told_by_module() -> None:
    folder = "/x/engine/shoal_engine"
    assert step_profile.group_of(f"{folder}/scheduler.py", "schedule") == "schedule"
    assert step_profile.group_of(f"{folder}/kernels/triton_decode.py", "attend") == "launch"
    assert step_profile.group_of(f"{folder}/decode_graph.py", "replay") == "decode_graph"
    assert step_profile.group_of("~", "<method 'synchronize' of 'torch._C._CudaEventBase' objects>") == "wait"
    assert step_profile.group_of("~", "<method 'append' of 'list' objects>") == "builtins"


def test_prompts_of_one_bench_never_repeat(bench: Bench) -> None:
    first, second = (bench.jobs([(16, 1)] * 20) for _ in range(2))
    prompts = [tuple(job.prompt) for job in first + second]
    assert len(set(prompts)) == len({job.id for job in first + second}) == 40


def test_latency_is_that_of_a_decode_step() -> None:
    subject = ScriptedSubject(prefills=2, step_s=0.003)
    made = Bench(subject, "shoal", Cost(TINY_SHAPE), None, TINY)
    for figure in CASES["C"](made):
        assert 3.0 <= figure.value <= 30.0
        assert figure.floor is None


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_engine_reads_every_shape(shape, tmp_path: Path) -> None:
    config = read_config(shape.write(tmp_path))
    assert config.vocab_size == shape.vocab
    assert (FULL if shape is not TINY_SHAPE else TINY).max_model_len <= config.max_position_embeddings


def test_published_figures_have_the_names_of_ours() -> None:
    batches = {f"C batch {batch}" for batch in FULL.batches}
    known = {*CASES, *batches, "start cold"} - {"C"}
    assert {name for figures in PUBLISHED.values() for name in figures} <= known
