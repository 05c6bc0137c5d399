"""The engines that can be measured, behind one interface: Shoal in this process, and vLLM as it ships.

Product code never imports vLLM; this file does so only when it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from timeline import Advance, Job, Subject

TEMPERATURE = 0.6


class Shoal:
    """`LLM` and its engine, one step at a time."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        from shoal_engine import LLM, SamplingParams
        from shoal_engine.messages import Submit

        self._submit, self._params = Submit, SamplingParams
        self.llm = LLM(str(folder), load_format="dummy", **options)
        self.engine = self.llm.engine
        self.load_seconds: dict[str, float] = dict(self.engine.ready.load_seconds)

    def add(self, job: Job) -> None:
        params = self._params(
            temperature=TEMPERATURE, max_tokens=job.new_tokens, ignore_eos=True, detokenize=False
        )
        self.engine.add(self._submit(job.id, job.prompt, params))

    def step(self) -> Any:
        return self.engine.step()

    def prepare(self) -> None:
        while self.engine.prepare():
            pass

    @property
    def has_work(self) -> bool:
        return self.engine.has_work

    def advances(self, outputs: Any) -> Iterable[Advance]:
        for output in outputs:
            if output.finish_reason == "error":
                raise RuntimeError(f"request {output.id}: {output.error_message}")
            if output.token_ids:
                yield Advance(output.id, len(output.token_ids), output.num_cached_tokens or 0)


class Vllm:
    """vLLM with its defaults, through `LLM.llm_engine`, whose core runs in a process of its own."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
        from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

        self._params, self._kind = SamplingParams, RequestOutputKind.DELTA
        self.llm = LLM(model=str(folder), load_format="dummy", skip_tokenizer_init=True, **options)
        self.engine = self.llm.llm_engine
        self.load_seconds: dict[str, float] = {}
        self._begun: set[str] = set()

    def add(self, job: Job) -> None:
        params = self._params(
            temperature=TEMPERATURE,
            max_tokens=job.new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=self._kind,
        )
        self.engine.add_request(job.id, {"prompt_token_ids": job.prompt}, params)

    def step(self) -> Any:
        return self.engine.step()

    def prepare(self) -> None:
        """It has recorded its graphs."""

    @property
    def has_work(self) -> bool:
        return bool(self.engine.has_unfinished_requests())

    def advances(self, outputs: Any) -> Iterable[Advance]:
        for output in outputs:
            tokens = len(output.outputs[0].token_ids)
            if tokens:
                is_first = output.request_id not in self._begun
                self._begun.add(output.request_id)
                yield Advance(output.request_id, tokens, (output.num_cached_tokens or 0) if is_first else 0)


SUBJECTS: dict[str, Callable[[Path, dict[str, Any]], Subject]] = {"shoal": Shoal, "vllm": Vllm}
# What both engines call the same. Everything else is Shoal's own and leaves vLLM at its defaults.
SHARED_OPTIONS = frozenset({"quantization", "kv_cache_dtype", "max_model_len", "gpu_memory_utilization"})


def open_subject(name: str, folder: Path, options: dict[str, Any]) -> Subject:
    """Load a model of random weights. `options` are those of `shoal_engine.LLM`."""
    if name != "shoal":
        options = {key: value for key, value in options.items() if key in SHARED_OPTIONS}
    return SUBJECTS[name](folder, options)
