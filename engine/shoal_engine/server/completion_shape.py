"""Answers of /v1/completions, with echo. Pure: deltas in, OpenAI's objects out."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from shoal_engine.choice_text import Delta
from shoal_engine.messages import TokenLogprobs
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.server.admission import Prompt
from shoal_engine.server.logprobs import completion_logprobs, prompt_logprobs
from shoal_engine.server.protocol import CompletionBody
from shoal_engine.server.replies import CompletionChoice, CompletionLogprobs, CompletionReply, Usage
from shoal_engine.server.shape import Choice, Letterhead
from shoal_engine.tokenizer import Tokenizer


class CompletionShape:
    def __init__(
        self,
        head: Letterhead,
        body: CompletionBody,
        params: SamplingParams,
        prompts: Sequence[Prompt],
        tokenizer: Tokenizer,
    ) -> None:
        self._head = head
        self._body = body
        self._params = params
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._offsets: dict[int, int] = {}  # choice -> characters that its logprobs cover so far

    def opening(self) -> list[CompletionReply]:
        return []

    def chunk(self, choice: int, delta: Delta) -> CompletionReply | None:
        first = choice not in self._offsets
        shown = Choice(prompt_logprobs=delta.prompt_logprobs)
        shown.add(delta)
        reply = self._choice(choice, shown, first)
        if self._body.return_token_ids and (first or delta.token_ids):
            return self._reply([reply])
        visible = reply.text or delta.finish_reason or (reply.logprobs and reply.logprobs.tokens)
        return self._reply([reply]) if visible else None

    def skip(self, choice: int, token_ids: Sequence[int]) -> None:
        """The offsets of what follows count from behind them."""
        told = token_ids if self._params.logprobs is not None else ()
        self._offsets[choice] = sum(len(self._tokenizer.token_text(token_id)) for token_id in told)

    def closing(self) -> CompletionReply:
        return self._reply([])

    def whole(self, choices: Sequence[Choice], usage: Usage) -> CompletionReply:
        reply = self._reply([self._choice(index, choice, True) for index, choice in enumerate(choices)])
        for each, choice in zip(reply.choices, choices, strict=True):
            if self._body.prompt_logprobs is not None and choice.prompt_logprobs is not None:
                each.prompt_logprobs = prompt_logprobs(self._tokenizer, choice.prompt_logprobs)
        reply.usage = usage
        return reply

    def _choice(self, index: int, choice: Choice, first: bool) -> CompletionChoice:
        """`first`: nothing of it has been shown yet, so an echo begins here."""
        prompt = self._prompts[index // self._params.n]
        with_ids = bool(self._body.return_token_ids)
        echo = bool(first and self._body.echo)
        return CompletionChoice(
            index=index,
            text=prompt.text + choice.text if echo else choice.text,
            logprobs=self._logprobs(index, choice, prompt if echo else None),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason if choice.finish_reason else UNSET,
            token_ids=choice.token_ids if with_ids else UNSET,
            prompt_token_ids=prompt.token_ids if with_ids and first else UNSET,
        )

    def _logprobs(self, index: int, choice: Choice, echoed: Prompt | None) -> CompletionLogprobs | None:
        offset = self._offsets.setdefault(index, 0)
        if self._params.logprobs is None:
            return None
        entries: list[TokenLogprobs | None] = [*choice.logprobs]
        ids = [entry.chosen.token_id for entry in choice.logprobs]
        if echoed is not None and choice.prompt_logprobs is not None:
            entries = [*choice.prompt_logprobs, *entries]
            ids = [*echoed.token_ids, *ids]
        reply = completion_logprobs(self._tokenizer, entries, ids, offset)
        self._offsets[index] = offset + sum(map(len, reply.tokens))
        return reply

    def _reply(self, choices: list[CompletionChoice]) -> CompletionReply:
        head = self._head
        return CompletionReply(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            choices=choices,
        )
