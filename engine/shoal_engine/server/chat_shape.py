"""Answers of /v1/chat/completions. Pure: deltas in, OpenAI's objects out."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from shoal_engine.choice_text import Delta
from shoal_engine.messages import TokenLogprobs
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.server.logprobs import chat_logprobs, prompt_logprobs
from shoal_engine.server.protocol import ChatBody
from shoal_engine.server.replies import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatReply,
    Usage,
)
from shoal_engine.server.shape import Choice, Letterhead
from shoal_engine.tokenizer import Tokenizer


class ChatShape:
    def __init__(
        self,
        head: Letterhead,
        body: ChatBody,
        params: SamplingParams,
        prompt_token_ids: list[int],
        tokenizer: Tokenizer,
    ) -> None:
        self._head = head
        self._params = params
        self._tokenizer = tokenizer
        self._with_ids = bool(body.return_token_ids)
        self._prompt_ids: list[int] | UnsetType = prompt_token_ids if self._with_ids else UNSET

    def opening(self) -> list[ChatChunk]:
        roles = [
            ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))
            for index in range(self._params.n)
        ]
        first = self._chunk(roles)
        first.prompt_token_ids = self._prompt_ids
        return [first]

    def chunk(self, choice: int, delta: Delta) -> ChatChunk | None:
        visible = delta.text or delta.finish_reason or delta.logprobs or (self._with_ids and delta.token_ids)
        if not visible:
            return None
        return self._chunk(
            [
                ChatChunkChoice(
                    index=choice,
                    delta=ChatDelta(content=delta.text or UNSET),
                    logprobs=self._logprobs(delta.logprobs),
                    finish_reason=delta.finish_reason,
                    stop_reason=delta.stop_reason if delta.finish_reason else UNSET,
                    token_ids=delta.token_ids if self._with_ids else UNSET,
                )
            ]
        )

    def skip(self, choice: int, token_ids: Sequence[int]) -> None:
        """A chunk depends on none before it."""

    def closing(self) -> ChatChunk:
        return self._chunk([])

    def whole(self, choices: Sequence[Choice], usage: Usage) -> ChatReply:
        head = self._head
        of_prompt = choices[0].prompt_logprobs
        return ChatReply(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            choices=[self._choice(index, choice) for index, choice in enumerate(choices)],
            usage=usage,
            prompt_logprobs=UNSET if of_prompt is None else prompt_logprobs(self._tokenizer, of_prompt),
            prompt_token_ids=self._prompt_ids,
        )

    def _choice(self, index: int, choice: Choice) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AssistantMessage(content=choice.text),
            logprobs=self._logprobs(choice.logprobs),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if self._with_ids else UNSET,
        )

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        return None if self._params.logprobs is None else chat_logprobs(self._tokenizer, entries)

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        head = self._head
        return ChatChunk(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            choices=choices,
        )
