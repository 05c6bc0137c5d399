"""The engine in the caller's own process: give it prompts, get completions. No HTTP, no sockets, no second process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shoal_api.options import ModelOptions
from shoal_engine.choice_text import ChoiceText, Delta
from shoal_engine.gpu_wakeup import woken_gpu
from shoal_engine.messages import Output, Submit, TokenLogprobs
from shoal_engine.model_text import ModelText, load_model_text
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.tokenizer import Tokenizer

Prompt = str | Mapping[str, Sequence[int]]
ANY_NUMBER = 2**40  # of prompts may wait: whoever calls generate() has nobody to come back later for him


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` completions of a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None  # with finish_reason "error": why; the other completions are not affected


@dataclass(slots=True)
class RequestOutput:
    """A prompt with its completions; `num_cached_tokens` prompt tokens came from the prefix cache."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0


class LLM:
    """`LLM("folder or file.gguf").generate(prompts, SamplingParams(...))`. Options are those of `shoal serve`."""

    def __init__(self, model: str, **options: Any) -> None:
        self._options = ModelOptions(model=model, **{"max_num_queued_reqs": ANY_NUMBER, **options})
        with woken_gpu(self._options.device):
            from shoal_engine.engine import Engine

            self.engine = Engine.load(self._options)
        self._ids = itertools.count()

    @cached_property
    def text(self) -> ModelText:
        """Tokenizer and chat template, loaded on first use: token ids in and out need neither."""
        return load_model_text(self._options)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.text.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Complete each prompt, a text or {"prompt_token_ids": [...]}; results come in the order of the prompts.

        Raises EngineError (InvalidRequest, ...) before anything runs when a prompt or its parameters cannot be served.
        """
        batch: Sequence[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else prompts
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params: Sequence[SamplingParams] = [sampling_params or SamplingParams()] * len(batch)
        else:
            params = sampling_params
        jobs = [self._job(prompt, param) for prompt, param in zip(batch, params, strict=True)]
        self._run(jobs, progress)
        return [job.result for job in jobs]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several: a conversation is a list of {"role", "content"}."""
        several = not (messages and isinstance(messages[0], Mapping))
        conversations: Sequence[Any] = messages if several else [messages]
        ids = [self.tokenizer.encode(self.text.template.render(turns), False) for turns in conversations]
        prompts: list[Prompt] = [{"prompt_token_ids": prompt} for prompt in ids]
        return self.generate(prompts, sampling_params, progress=progress)

    def _job(self, prompt: Prompt, params: SamplingParams) -> _Job:
        text = prompt if isinstance(prompt, str) else None
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt["prompt_token_ids"])
        request_id = f"llm-{next(self._ids)}"
        children = [Submit(f"{request_id}-{i}", ids, param) for i, param in enumerate(params.fan_out())]
        outputs = [CompletionOutput(index) for index in range(params.n)]
        result = RequestOutput(request_id, text, ids, outputs)
        texts = [ChoiceText(self.tokenizer, ids, params) for _ in children] if params.detokenize else None
        return _Job(result, children, texts)

    def _run(self, jobs: list[_Job], progress: bool) -> None:
        targets = {child.id: (job, index) for job in jobs for index, child in enumerate(job.children)}
        try:
            for job in jobs:
                for child in job.children:
                    self.engine.add(child)
            with _progress_bar(len(targets), progress) as advance:
                while self.engine.has_work:
                    for output in self.engine.step():
                        job, index = targets[output.id]
                        if self._take(job, index, output):
                            advance()
        except BaseException:
            self.engine.abort(list(targets))  # also on Ctrl-C: the engine stays usable
            raise

    def _take(self, job: _Job, index: int, output: Output) -> bool:
        """Apply one output; True when that completion has ended."""
        completion = job.result.outputs[index]
        if completion.finish_reason is not None:
            return False  # a stop string ended it; this came before the abort
        if output.num_cached_tokens is not None and index == 0:
            job.result.num_cached_tokens = output.num_cached_tokens
        if output.prompt_logprobs is not None:
            job.result.prompt_logprobs = output.prompt_logprobs
        delta = job.texts[index].advance(output) if job.texts is not None else _untold(output)
        completion.text += delta.text
        completion.token_ids += delta.token_ids
        if output.logprobs is not None:
            completion.logprobs = (completion.logprobs or []) + delta.logprobs
        completion.finish_reason, completion.stop_reason = delta.finish_reason, delta.stop_reason
        completion.error = output.error_message
        if delta.finish_reason is not None and output.finish_reason is None:
            self.engine.abort([output.id])
        return delta.finish_reason is not None


@contextmanager
def _progress_bar(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """What is called for each completion that has ended."""
    if not shown:
        yield lambda: None
        return
    from rich.progress import Progress  # a tenth of a second of a start

    with Progress() as bar:
        task = bar.add_task("completions", total=total)
        yield lambda: bar.advance(task)


@dataclass(slots=True)
class _Job:
    """A prompt on its way. `texts` is None when the completions are wanted as tokens only."""

    result: RequestOutput
    children: list[Submit]
    texts: list[ChoiceText] | None


def _untold(output: Output) -> Delta:
    """An output as it is, without its text."""
    return Delta(
        token_ids=output.token_ids,
        logprobs=output.logprobs or [],
        finish_reason=output.finish_reason,
        stop_reason=output.stop_reason,
    )
