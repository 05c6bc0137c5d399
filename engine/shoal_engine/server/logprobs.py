"""Log probabilities in the three shapes clients know: chat, completions, and vLLM's for prompts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from shoal_engine.messages import Logprob, TokenLogprobs
from shoal_engine.server.replies import (
    ChatLogprob,
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)
from shoal_engine.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no minus infinity


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprobs]) -> ChatLogprobs:
    return ChatLogprobs([_chat_token(tokenizer, entry) for entry in entries])


def completion_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprobs | None], token_ids: Sequence[int], offset: int
) -> CompletionLogprobs:
    """`entries` for `token_ids`, None where nothing precedes a token; `offset`: characters before the first
    of them.
    """
    reply = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token_id, entry in zip(token_ids, entries, strict=True):
        text = tokenizer.token_text(token_id)
        reply.tokens.append(text)
        reply.text_offset.append(offset)
        reply.token_logprobs.append(None if entry is None else _finite(entry.chosen.logprob))
        reply.top_logprobs.append(None if entry is None else _by_text(tokenizer, entry))
        offset += len(text)
    return reply


def prompt_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprobs | None]) -> PromptLogprobs:
    """Candidates by token id, the prompt's own token among them."""
    return [
        None
        if entry is None
        else {str(each.token_id): _prompt_token(tokenizer, each) for each in (*entry.top, entry.chosen)}
        for entry in entries
    ]


def _chat_token(tokenizer: Tokenizer, entry: TokenLogprobs) -> ChatLogprob:
    chosen = entry.chosen
    top = [
        TopLogprob(
            tokenizer.token_text(each.token_id),
            _finite(each.logprob),
            list(tokenizer.token_bytes(each.token_id)),
        )
        for each in entry.top
    ]
    return ChatLogprob(
        tokenizer.token_text(chosen.token_id),
        _finite(chosen.logprob),
        list(tokenizer.token_bytes(chosen.token_id)),
        top,
    )


def _by_text(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[str, float]:
    """The likeliest token of each text; the chosen one is always there."""
    found: dict[str, float] = {}
    for each in (*entry.top, entry.chosen):
        found.setdefault(tokenizer.token_text(each.token_id), _finite(each.logprob))
    return found


def _prompt_token(tokenizer: Tokenizer, entry: Logprob) -> PromptLogprob:
    return PromptLogprob(_finite(entry.logprob), entry.rank, tokenizer.token_text(entry.token_id))


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
