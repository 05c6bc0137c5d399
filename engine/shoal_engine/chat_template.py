"""A conversation as the text a model was trained to see. Templates are the model's or the operator's, never a client's.

Rendering happens in a worker process with limits (`template_process.py`), so that no template and no conversation
can hang or fill the server; what the limits stop is that one request's error.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from shoal_engine.errors import EngineUnavailable, InvalidRequest, ModelLoadError
from shoal_engine.template_process import TemplateLimits, TemplateProcess, WorkerGone

MAX_WORKERS = 4  # as many as the API process has threads that render
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_VARIABLES = frozenset({"messages", "tools", "documents"})
# Put behind the last message and looked for in the text: where a continued message ends. The space shows trimming.
_END_MARK = "END_OF_THE_CONTINUED_MESSAGE "


class TemplateVocabulary(Protocol):
    """What a template needs of a tokenizer."""

    @property
    def special_tokens(self) -> Mapping[str, str]: ...

    @property
    def chat_templates(self) -> Mapping[str, str]: ...


class ChatTemplate:
    """Thread-safe. `source` is a Jinja template, None where a model has none.

    Raises ModelLoadError on construction when the template is not valid.
    """

    def __init__(
        self, source: str | None, tokenizer: TemplateVocabulary, limits: TemplateLimits | None = None
    ) -> None:
        self._sources = [source] if source is not None else []
        own_tool_source = tokenizer.chat_templates.get("tool_use")
        if own_tool_source is not None and source == tokenizer.chat_templates.get("default"):
            self._sources.append(own_tool_source)
        self._special_tokens = dict(tokenizer.special_tokens)
        self._limits = limits or TemplateLimits()
        self._idle: list[TemplateProcess] = []
        self._lock = threading.Lock()
        if self._sources:
            self._idle.append(self._start())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        **switches: Any,
    ) -> str:
        """The prompt's text, special tokens included. `switches` are further variables of the template.

        add_generation_prompt None: a new answer is begun unless the last message is continued.
        Raises InvalidRequest for what the template refuses or cannot render, and when it exceeds its limits.
        """
        if not self._sources:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions, or start the engine with --chat-template",
                param="messages",
            )
        self._check_switches(switches)
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other",
                param="continue_final_message",
            )
        begins_answer = not continue_final_message if add_generation_prompt is None else add_generation_prompt
        turns = [_normalised(message) for message in messages]
        if not turns:
            raise InvalidRequest("messages is empty; send at least one", param="messages")
        variables = {
            **self._special_tokens,
            **switches,
            "messages": _marked(turns) if continue_final_message else turns,
            "tools": list(tools) if tools is not None else None,
            "documents": None,
            "add_generation_prompt": begins_answer,
        }
        text = self._render(len(self._sources) - 1 if tools else 0, variables)
        return _cut_at_mark(text) if continue_final_message else text

    def close(self) -> None:
        """End the idle workers. Without it they end with this object."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def _render(self, template: int, variables: Mapping[str, Any]) -> str:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        worker = worker or self._start()
        try:
            reply = worker.render(template, variables)
        except WorkerGone as gone:
            raise self._stopped(gone.reason) from None
        except (TypeError, ValueError, RecursionError) as error:
            reply = {"error": "failed", "message": f"no JSON: {error}"}
        with self._lock:
            if len(self._idle) < MAX_WORKERS:
                self._idle.append(worker)
        if "text" in reply:
            return reply["text"]
        raise self._refusal(reply["error"], reply["message"])

    def _start(self) -> TemplateProcess:
        try:
            worker = TemplateProcess(self._sources, self._limits)
        except WorkerGone as gone:
            raise ModelLoadError(
                f"the chat template cannot be compiled within its limits ({gone.reason}); "
                "give another with --chat-template"
            ) from None
        if worker.started:
            worker.close()
            raise ModelLoadError(
                f"the chat template is not valid ({worker.started['message']}); give another with --chat-template"
            )
        return worker

    def _refusal(self, kind: str, message: str) -> InvalidRequest:
        if kind == "raised":
            return InvalidRequest(
                f"the model's chat template refuses these messages: {message}", param="messages"
            )
        if kind == "failed":
            return InvalidRequest(
                f"the model's chat template cannot render these messages ({message})", param="messages"
            )
        return self._too_much(f"{self._limits.max_chars} characters" if kind == "size" else "its memory")

    def _stopped(self, reason: str) -> InvalidRequest | EngineUnavailable:
        if reason == "stalled":
            return EngineUnavailable("the chat template's process does not answer; try again")
        return self._too_much(
            f"{self._limits.cpu_seconds} s of CPU time" if reason == "time" else "its memory"
        )

    def _too_much(self, limit: str) -> InvalidRequest:
        return InvalidRequest(
            f"the model's chat template needs more than {limit} for these messages; shorten the conversation",
            param="messages",
        )

    def _check_switches(self, switches: Mapping[str, Any]) -> None:
        taken = sorted(switches.keys() & (_VARIABLES | self._special_tokens.keys()))
        if taken:
            raise InvalidRequest(
                f"chat_template_kwargs must not set {', '.join(taken)}", param="chat_template_kwargs"
            )


def _normalised(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without fields that are None, which templates print as a word, and with reasoning under the names they read."""
    turn = {name: value for name, value in message.items() if value is not None}
    reasoning = next((turn[name] for name in _REASONING_NAMES if name in turn), None)
    if reasoning is not None:
        turn = {"thinking": reasoning, **turn, "reasoning_content": reasoning}
    return turn


def _marked(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with the end mark behind the text of its last message."""
    *before, last = turns
    content = last.get("content")
    if isinstance(content, str):
        return [*before, {**last, "content": content + _END_MARK}]
    parts = list(content) if isinstance(content, list | tuple) else []
    for index in range(len(parts) - 1, -1, -1):
        if isinstance(parts[index], Mapping) and isinstance(parts[index].get("text"), str):
            parts[index] = {**parts[index], "text": parts[index]["text"] + _END_MARK}
            return [*before, {**last, "content": parts}]
    raise InvalidRequest("the last message has no text to continue", param="continue_final_message")


def _cut_at_mark(text: str) -> str:
    """What comes before the mark; where the template trimmed the message, the text's own trailing space goes too."""
    at = text.rfind(_END_MARK.strip())
    if at < 0:
        raise InvalidRequest(
            "the model's chat template leaves out the last message, so it cannot be continued",
            param="continue_final_message",
        )
    return text[:at] if text.startswith(_END_MARK, at) else text[:at].rstrip()
