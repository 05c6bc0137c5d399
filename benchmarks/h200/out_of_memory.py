"""What an engine does when the GPU's memory runs out in the middle of serving: nobody but the culprit may lose anything.

    python benchmarks/h200/out_of_memory.py

Takes every byte that is free but LEFT_BYTES, so that steps with long prompts fail, and gives it back later. Requests that
are being decoded, short prompts and long ones must all end with all their tokens. Exit status 1 if one does not, or if no
step ran out of memory.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "engine"), str(ROOT / "crds")]

import torch  # noqa: E402
from shapes import SHAPES  # noqa: E402

from shoal_engine import LLM, SamplingParams  # noqa: E402
from shoal_engine.engine import Engine  # noqa: E402
from shoal_engine.messages import Submit  # noqa: E402

NEW_TOKENS = 64
LEFT_BYTES = 150 * 2**20  # to decode with, and too little for a step of 8192 tokens, which takes 200 MB
PIECES = (2**30, 2**26, 2**22)  # bytes: the last is what torch asks of the driver at least
HELD_STEPS = 40


def submit(engine: Engine, name: str, tokens: int, vocab: int) -> None:
    prompt = [random.randrange(vocab) for _ in range(tokens)]
    params = SamplingParams(temperature=0.7, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    engine.add(Submit(name, prompt, params))


def take_memory() -> list[torch.Tensor]:
    """All there is, in pieces, also what torch keeps for later, and then LEFT_BYTES given back."""
    torch.cuda.empty_cache()
    held = [torch.empty(LEFT_BYTES, dtype=torch.uint8, device="cuda")]
    for size in PIECES:
        while True:
            try:
                held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                break
    del held[0]
    torch.cuda.empty_cache()
    return held


def main() -> int:
    shape = SHAPES["0.6b"]
    folder = shape.write(Path(tempfile.mkdtemp()))
    llm = LLM(str(folder), load_format="dummy", device="cuda", max_model_len=9000, max_num_seqs=64)
    engine, lengths = llm.engine, {}
    for i in range(16):
        submit(engine, f"decoding{i}", 100, shape.vocab)
    counts: dict[str, int] = {}
    errors: list[str] = []
    held: list[torch.Tensor] = []
    for step in range(20_000):
        if step == 8:
            held = take_memory()
            for i in range(4):
                submit(engine, f"long{i}", 8192, shape.vocab)
            submit(engine, "short", 30, shape.vocab)
        if step == 8 + HELD_STEPS:
            held = []
        for output in engine.step():
            counts[output.id] = counts.get(output.id, 0) + len(output.token_ids)
            if output.finish_reason == "error":
                errors.append(f"{output.id}: {output.error_message}")
        lengths[engine.scheduler.limits.max_num_batched_tokens] = step
        if not engine.has_work:
            break
    short = {name: count for name, count in counts.items() if count != NEW_TOKENS}
    print(f"budgets seen: {sorted(lengths)}; still held: {len(held)}; errors: {errors}; incomplete: {short}")
    if len(lengths) == 1:
        print("no step ran out of memory: nothing is proven")
    return int(bool(errors or short or len(counts) != 21 or len(lengths) == 1))


if __name__ == "__main__":
    raise SystemExit(main())
