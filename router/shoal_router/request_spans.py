"""The spans of one request: the router's own, and one below it for each attempt at a replica. Pure.

Attribute names are OpenTelemetry's (http.*, url.*, gen_ai.*) where it has one, shoal.* where not.
"""

from __future__ import annotations

from typing import Final

from shoal_api.spans import Kind, Span, Value
from shoal_router.record import Attempt, Record

OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
CLIENT_CLOSED_REQUEST: Final = 499


def spans_of(record: Record, now_s: float, at: float) -> list[Span]:
    """All spans of a request that is over. `now_s` on the journal's clock is `at` in seconds of the epoch."""
    offset_s = at - now_s

    def ns(moment_s: float) -> int:
        return int((moment_s + offset_s) * 1e9)

    assert record.context is not None
    method = record.request.method.decode("latin-1") if record.request is not None else ""
    path = record.request.path if record.request is not None else ""
    spans = [
        Span(
            f"{method} {path}",
            Kind.SERVER,
            record.context,
            record.parent_id,
            ns(record.began_s),
            ns(now_s),
            _attributes(record, method, path),
            f"status {record.status}" if record.status >= 500 else "",
        )
    ]
    for each in record.attempts:
        if each.context is not None:
            parent_id, end_s = record.context.span_id, each.ended_s or now_s
            attributes = _attempt_attributes(each, method, path)
            spans.append(
                Span(
                    "resume" if each.resumes else "attempt",
                    Kind.CLIENT,
                    each.context,
                    parent_id,
                    ns(each.began_s),
                    ns(end_s),
                    attributes,
                    each.failure or (f"status {each.status}" if each.status >= 500 else ""),
                )
            )
    return spans


def _attributes(record: Record, method: str, path: str) -> dict[str, Value]:
    request, usage = record.request, record.usage
    found: dict[str, Value] = {
        "http.request.method": method,
        "http.route": path,
        "url.path": path,
        "http.response.status_code": record.status,
        "gen_ai.request.stream": record.stream,
        "shoal.retries": record.retries,
        "shoal.resumes": record.resumes,
    }
    if path in OPERATIONS:
        found["gen_ai.operation.name"] = OPERATIONS[path]
    if record.model:
        found["gen_ai.request.model"] = record.model
    if request is not None:
        found["shoal.request_id"] = request.request_id.decode("latin-1")
        if request.tenant:
            found["shoal.tenant"] = request.tenant
    if record.replica:
        found["shoal.replica"] = record.replica
    if record.first_byte_s:
        found["gen_ai.response.time_to_first_chunk"] = record.first_byte_s - record.began_s
    if usage is not None:
        found["gen_ai.usage.input_tokens"] = usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = usage.completion_tokens
        if usage.cached_tokens is not None:
            found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if record.status >= 500 or record.status == CLIENT_CLOSED_REQUEST:
        found["error.type"] = str(record.status)
    return found


def _attempt_attributes(attempt: Attempt, method: str, path: str) -> dict[str, Value]:
    found: dict[str, Value] = {
        "http.request.method": method,
        "url.path": path,
        "shoal.replica": attempt.replica,
    }
    if attempt.status:
        found["http.response.status_code"] = attempt.status
    if attempt.first_byte_s:
        found["shoal.time_to_first_byte"] = attempt.first_byte_s - attempt.began_s
    if attempt.failure:
        found["error.type"] = attempt.failure
    return found
