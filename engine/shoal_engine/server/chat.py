"""Admission of /v1/chat/completions: a conversation becomes one prompt with n choices."""

from __future__ import annotations

from shoal_engine.server.admission import (
    Prompt,
    check_body,
    job_of,
    letterhead,
    longest_prompt,
    template_switches,
    truncated,
)
from shoal_engine.server.answer import Job
from shoal_engine.server.chat_shape import ChatShape
from shoal_engine.server.protocol import ChatBody
from shoal_engine.server.service import Service
from shoal_engine.server.terms import Terms


async def admit_chat(service: Service, body: ChatBody, terms: Terms) -> Job:
    """Raises EngineError."""
    prompts, ready, params = check_body(service, body, terms)
    switches = template_switches(body)
    ids = await prompts.of_chat(body.messages, switches, max_tokens=longest_prompt(body, ready))
    ids = truncated(ids, body, params, ready)
    head = letterhead(service, "chatcmpl-", body, terms)
    shape = ChatShape(head, body, params, ids, prompts.tokenizer)
    return job_of(service, body, params, [Prompt(ids)], shape, head, terms)
