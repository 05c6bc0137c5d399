"""What planning and committing a step costs the host, without a model: microseconds per step and per request.

    python benchmarks/scheduler.py [--steps 400]

A step gives every running request one token; every sixteenth time all of them need a new block at once, which
is the p99. Admit: prompts of 512 tokens, 480 of them cached, are hashed, looked up, planned and committed.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time

from shoal_engine.blocks import BlockPool
from shoal_engine.limits import SchedulerLimits
from shoal_engine.request import Request
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.scheduler import Scheduler

PROMPT_TOKENS = 512
SHARED_TOKENS = 480
MAX_MODEL_LEN = 8192


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    print("running  schedule us  commit us  step us   p99 us  us/request  admit us/request")
    for num_running in (1, 16, 256, 1024):
        admit_us, plan_us, commit_us = measure(num_running, steps)
        step_us = sorted(a + b for a, b in zip(plan_us, commit_us, strict=True))
        plan, commit, step = (statistics.median(times) for times in (plan_us, commit_us, step_us))
        p99 = step_us[int(len(step_us) * 0.99)]
        print(
            f"{num_running:7d} {plan:12.1f} {commit:10.1f} {step:8.1f} {p99:8.1f} "
            f"{step / num_running:11.2f} {admit_us:17.1f}"
        )


def measure(num_running: int, steps: int) -> tuple[float, list[float], list[float]]:
    """Admission per request, then schedule and commit of each decode step, all in microseconds."""
    limits = SchedulerLimits(
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=num_running,
        max_num_batched_tokens=2**20,
        max_num_queued_reqs=None,
    )
    blocks_per_request = (PROMPT_TOKENS + steps) // limits.block_tokens + 2
    scheduler = Scheduler(limits, BlockPool(num_running * blocks_per_request + 64))
    warm_up(scheduler)
    admit_us = admit(scheduler, num_running)
    plan_us, commit_us = [], []
    gc.collect()
    gc.disable()
    for _ in range(steps):
        begin = time.perf_counter()
        plan = scheduler.schedule()
        planned = time.perf_counter()
        scheduler.commit(plan, [7] * plan.num_samples)
        plan_us.append((planned - begin) * 1e6)
        commit_us.append((time.perf_counter() - planned) * 1e6)
        assert plan.num_decodes == num_running
    gc.enable()
    return admit_us, plan_us, commit_us


def warm_up(scheduler: Scheduler) -> None:
    """Put the shared prefix into the cache."""
    scheduler.add(Request("first", list(range(PROMPT_TOKENS)), SamplingParams(max_tokens=1), 0.0))
    plan = scheduler.schedule()
    scheduler.commit(plan, [0])


def admit(scheduler: Scheduler, count: int) -> float:
    prompts = [
        [*range(SHARED_TOKENS), *range(i, i + PROMPT_TOKENS - SHARED_TOKENS)]
        for i in range(1000, 1000 + count)
    ]
    params = SamplingParams(max_tokens=MAX_MODEL_LEN - PROMPT_TOKENS)
    begin = time.perf_counter()
    for index, prompt in enumerate(prompts):
        scheduler.add(Request(str(index), prompt, params, float(index)))
    plan = scheduler.schedule()
    scheduler.commit(plan, [7] * plan.num_samples)
    assert plan.num_samples == count
    return (time.perf_counter() - begin) / count * 1e6


if __name__ == "__main__":
    main()
