"""The engine in the caller's own process: give it prompts, get completions. No HTTP, no sockets, no second process."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.progress import Progress

from shoal_api.options import ModelOptions
from shoal_engine.chat_template import ChatTemplate
from shoal_engine.detokenizer import Detokenizer, StopStrings
from shoal_engine.engine import Engine
from shoal_engine.errors import EngineError
from shoal_engine.messages import Output, Submit, TokenLogprobs
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.tokenizer import Tokenizer, load_tokenizer

Prompt = str | Mapping[str, Sequence[int]]


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` completions of a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


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
        self.engine = Engine.load(ModelOptions(model=model, **options))
        self._tokenizer: Tokenizer | None = None
        self._ids = itertools.count()

    @property
    def tokenizer(self) -> Tokenizer:
        """Loaded on first use: prompts given as token ids with `skip_special_tokens` off need none."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.engine.model_path, self.engine.config)
        return self._tokenizer

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
        template = ChatTemplate(self.tokenizer.chat_template, self.tokenizer)
        ids = [
            self.tokenizer.encode(template.render(turns), add_special_tokens=False) for turns in conversations
        ]
        return self.generate(
            [{"prompt_token_ids": prompt} for prompt in ids], sampling_params, progress=progress
        )

    def _job(self, prompt: Prompt, params: SamplingParams) -> _Job:
        text = prompt if isinstance(prompt, str) else None
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt["prompt_token_ids"])
        request_id = f"llm-{next(self._ids)}"
        children = [Submit(f"{request_id}-{i}", ids, param) for i, param in enumerate(params.fan_out())]
        outputs = [CompletionOutput(index) for index in range(params.n)]
        result = RequestOutput(request_id, text, ids, outputs)
        return _Job(result, children, [_Text(self, ids, params) for _ in children])

    def _run(self, jobs: list[_Job], progress: bool) -> None:
        targets = {child.id: (job, index) for job in jobs for index, child in enumerate(job.children)}
        try:
            for job in jobs:
                for child in job.children:
                    self.engine.add(child)
            with Progress(disable=not progress) as bar:
                task = bar.add_task("completions", total=len(targets))
                while self.engine.has_work:
                    for output in self.engine.step():
                        job, index = targets[output.id]
                        if self._take(job, index, output):
                            bar.advance(task)
        except BaseException:
            self.engine.abort(list(targets))  # also on Ctrl-C: the engine stays usable
            raise

    def _take(self, job: _Job, index: int, output: Output) -> bool:
        """Apply one output; True when that completion has ended."""
        if output.finish_reason == "error":
            raise EngineError(output.error_message or "generation failed", code=output.error_code)
        completion = job.result.outputs[index]
        if completion.finish_reason is not None:
            return False  # a stop string ended it; the abort is under way
        completion.token_ids += output.token_ids
        if output.logprobs is not None:
            completion.logprobs = (completion.logprobs or []) + output.logprobs
        if output.num_cached_tokens is not None and index == 0:
            job.result.num_cached_tokens = output.num_cached_tokens
        if output.prompt_logprobs is not None:
            job.result.prompt_logprobs = output.prompt_logprobs
        stop = job.texts[index].push(output)
        completion.text = job.texts[index].text
        if stop is not None:
            completion.finish_reason, completion.stop_reason = "stop", stop
            self.engine.abort([output.id])
        elif output.finish_reason is not None:
            completion.finish_reason, completion.stop_reason = output.finish_reason, output.stop_reason
        return completion.finish_reason is not None


@dataclass(slots=True)
class _Job:
    result: RequestOutput
    children: list[Submit]
    texts: list[_Text]


class _Text:
    """Text of one completion so far, with stop strings taken out."""

    def __init__(self, llm: LLM, prompt_ids: list[int], params: SamplingParams) -> None:
        self.text = ""
        self._detokenizer = (
            Detokenizer(llm.tokenizer, prompt_ids, params.skip_special_tokens) if params.detokenize else None
        )
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)

    def push(self, output: Output) -> str | None:
        """Add what the tokens say; returns the stop string that was reached, if any."""
        if self._detokenizer is None:
            return None
        text = self._detokenizer.push(output.token_ids)
        if output.finish_reason is not None:
            text += self._detokenizer.flush()
        emitted, hit = self._stops.push(text)
        self.text += emitted
        if hit is None and output.finish_reason is not None:
            self.text += self._stops.flush()
        return hit
