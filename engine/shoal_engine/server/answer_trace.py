"""The trace of one answer: a span for the request, and below it what the engine did for each choice.

Times are those that the metrics go by. Without a collector there is no trace, and nothing here is called.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.types import Scope

from shoal_api.names import HEADER_TRACEPARENT
from shoal_api.spans import Kind, Span, SpanSender, Value
from shoal_engine.server.open_requests import Open
from shoal_engine.server.shape import Meter

OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
CLIENT_CLOSED_REQUEST = 499


class AnswerTrace:
    """Begun with the request, ended by `end`. `timeline` is filled by whoever hands requests to the engine."""

    def __init__(self, sender: SpanSender, scope: Scope, model: str, arrived_s: float) -> None:
        name = HEADER_TRACEPARENT.encode()
        found = [value for key, value in scope["headers"] if key == name]
        # Two of them are none (W3C Trace Context 3.2).
        caller = sender.context(found[0].decode("latin-1") if len(found) == 1 else "")
        self._sender = sender
        self._parent_id = caller.span_id
        self._context = caller.child(sender.rng)
        self._scope = scope
        self._model = model
        self._arrived_s = arrived_s
        self.timeline: list[Open] = []

    def end(self, status: int, meter: Meter | None) -> None:
        """The answer is over, with this status; `meter` counted its tokens if it came to that."""
        if not self._context.sampled:
            return
        now_s, now_ns = time.monotonic(), time.time_ns()

        def ns(moment_s: float) -> int:
            return now_ns - int((now_s - moment_s) * 1e9)

        method, path = self._scope["method"], self._scope["path"]
        error = f"status {status}" if status >= 500 else ""
        whole = Span(
            f"{method} {path}",
            Kind.SERVER,
            self._context,
            self._parent_id,
            ns(self._arrived_s),
            now_ns,
            self._attributes(status, meter),
            error,
        )
        spans = [whole]
        for one in self.timeline:
            for name, start_s, end_s in phases_of(one, now_s):
                spans.append(self._phase(name, ns(start_s), ns(end_s), one))
        self._sender.send(spans)

    def _phase(self, name: str, start_ns: int, end_ns: int, one: Open) -> Span:
        attributes: dict[str, Value] = {"shoal.choice": one.choice}
        if name == "decode":
            attributes["gen_ai.usage.output_tokens"] = one.tokens
        elif name == "prefill":
            attributes["gen_ai.usage.input_tokens"] = one.prompt_tokens
        context = self._context.child(self._sender.rng)
        return Span(name, Kind.INTERNAL, context, self._context.span_id, start_ns, end_ns, attributes)

    def _attributes(self, status: int, meter: Meter | None) -> dict[str, Value]:
        path = self._scope["path"]
        found: dict[str, Value] = {
            "http.request.method": self._scope["method"],
            "http.route": path,
            "url.path": path,
            "http.response.status_code": status,
            "gen_ai.request.model": self._model,
            "gen_ai.operation.name": OPERATIONS.get(path, "chat"),
            "shoal.request_id": self._scope["state"]["request_id"],
        }
        if meter is not None:
            found["gen_ai.usage.input_tokens"] = meter.prompt_tokens
            found["gen_ai.usage.output_tokens"] = meter.completion_tokens
            if meter.cached_tokens is not None:
                found["gen_ai.usage.cache_read.input_tokens"] = meter.cached_tokens
        if status >= 500 or status == CLIENT_CLOSED_REQUEST:
            found["error.type"] = str(status)
        return found


def phases_of(one: Open, now_s: float) -> Sequence[tuple[str, float, float]]:
    """Name, beginning and end of what the engine did for one choice, as far as it came. Seconds as in Open."""
    if not one.first_token_s:
        return [("queue", one.submitted_s, now_s)]
    phases = [("decode", one.first_token_s, one.last_token_s)]
    if one.started_s:  # an engine that goes on with an answer computes no first token
        phases.append(("queue", one.submitted_s, one.started_s))
        phases.append(("prefill", one.started_s, one.first_token_s))
    return phases
