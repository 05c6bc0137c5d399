"""From text and conversations to token ids, off the event loop where it takes long. Knows nothing of the
engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from shoal_engine.chat_template import MAX_WORKERS, ChatTemplate
from shoal_engine.errors import ContextTooLong, InvalidRequest, QueueFull
from shoal_engine.server.limits import Limits
from shoal_engine.server.protocol import Message
from shoal_engine.tokenizer import Tokenizer

Result = TypeVar("Result")

# A text far beyond the context is judged by its beginning: twice what a context of ordinary text takes.
HEAD_CHARS_PER_TOKEN = 8
HEAD_MARGIN_TOKENS = 256


class Lane:
    """Threads for one kind of work, and a limit on what may wait for them."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = threads + waiting
        self._inside = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Raises QueueFull."""
        if self._inside >= self._most:
            raise QueueFull("Too many long prompts wait to be tokenised. Try again later.")
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._inside -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Prompts:
    """Tokenises for one model. Long prompts have a lane of their own, so that short ones never wait behind
    them.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, limits: Limits, most_bytes: int) -> None:
        """`most_bytes`: the longest token's length; a text of k bytes has at least k / most_bytes tokens."""
        self.tokenizer = tokenizer
        self._template = template
        self._limits = limits
        self._most_bytes = most_bytes
        self._middle = Lane("tokenise", threads=MAX_WORKERS, waiting=1024)
        self._long = Lane("tokenise-long", threads=1, waiting=8)

    async def of_text(self, text: str, *, special: bool, max_tokens: int | None) -> list[int]:
        """Token ids of `text`. Raises ContextTooLong if they are more than `max_tokens`, often without
        making them; None: however many.
        """
        self._check_length(len(text), max_tokens)
        return await self._run(len(text), lambda: self._encode(text, special, max_tokens))

    async def of_chat(
        self, turns: Sequence[Message], switches: Mapping[str, Any], *, max_tokens: int | None
    ) -> list[int]:
        """Token ids of a conversation in the model's own format. Raises InvalidRequest, and as above."""
        rendered = [turn_of(turn, place) for place, turn in enumerate(turns)]
        chars = sum(len(turn["content"]) for turn in rendered)
        self._check_length(chars, max_tokens)

        def work() -> list[int]:
            text = self._template.render(rendered, **switches)
            return self._encode(text, special=False, max_tokens=max_tokens)  # the template writes them

        # In a thread, however short: the template renders in a process of its own, for which this waits.
        return await self._lane(chars).run(work)

    async def text_of(self, token_ids: list[int]) -> str:
        return await self._run(
            len(token_ids), lambda: self.tokenizer.decode(token_ids, skip_special_tokens=False)
        )

    async def texts_of(self, token_ids: list[int]) -> list[str]:
        """Each token's own text."""
        return await self._run(
            len(token_ids), lambda: [self.tokenizer.token_text(each) for each in token_ids]
        )

    def close(self) -> None:
        self._middle.close()
        self._long.close()
        self._template.close()

    def _check_length(self, chars: int, max_tokens: int | None) -> None:
        if max_tokens is not None and chars > max_tokens * self._most_bytes:
            raise _too_long(chars, chars // self._most_bytes, max_tokens)

    def _encode(self, text: str, special: bool, max_tokens: int | None) -> list[int]:
        head = text if max_tokens is None else text[: HEAD_CHARS_PER_TOKEN * max_tokens]
        ids = self.tokenizer.encode(head, add_special_tokens=special)
        # Where a text is cut, its last word may fall into other tokens than in the whole: hence the margin.
        if max_tokens is not None and len(ids) > max_tokens + HEAD_MARGIN_TOKENS:
            raise _too_long(len(text), len(ids) - HEAD_MARGIN_TOKENS, max_tokens)
        return ids if len(head) == len(text) else self.tokenizer.encode(text, add_special_tokens=special)

    async def _run(self, chars: int, work: Callable[[], Result]) -> Result:
        return work() if chars <= self._limits.inline_chars else await self._lane(chars).run(work)

    def _lane(self, chars: int) -> Lane:
        return self._middle if chars <= self._limits.long_chars else self._long


def _too_long(chars: int, tokens: int, max_tokens: int) -> ContextTooLong:
    return ContextTooLong(
        f"The prompt has {chars} characters, at least {tokens} tokens; the model's context holds {max_tokens}. "
        "Shorten the prompt."
    )


def turn_of(message: Message, place: int) -> dict[str, str]:
    """A message as templates want it: plain text. Raises InvalidRequest that names what is not text."""
    if message.tool_calls:
        field = f"messages[{place}].tool_calls"
        raise InvalidRequest(f"{field} is not supported yet.", param=field, code="unsupported_parameter")
    role = "system" if message.role == "developer" else message.role
    turn = {"role": role, "content": _text_of(message, place)}
    return turn if message.name is None else turn | {"name": message.name}


def _text_of(message: Message, place: int) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    texts = []
    for index, part in enumerate(message.content):
        field = f"messages[{place}].content[{index}]"
        if part.type != "text":
            raise InvalidRequest(
                f"{field}: parts of type {part.type[:40]!r} are not supported yet.",
                param=field,
                code="unsupported_parameter",
            )
        if part.text is None:
            raise InvalidRequest(f"{field}.text is missing.", param=f"{field}.text")
        texts.append(part.text)
    return "\n".join(texts)
