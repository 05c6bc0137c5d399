"""Admission of /v1/completions: prompts in any of four forms, each with n choices."""

from __future__ import annotations

from shoal_engine.errors import InvalidRequest
from shoal_engine.messages import Ready
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.server.admission import Prompt, check_body, job_of, letterhead, longest_prompt, truncated
from shoal_engine.server.answer import Job
from shoal_engine.server.completion_shape import CompletionShape
from shoal_engine.server.limits import Limits
from shoal_engine.server.prompts import Prompts
from shoal_engine.server.protocol import CompletionBody
from shoal_engine.server.sampling import check_vocabulary
from shoal_engine.server.service import Service
from shoal_engine.server.terms import Terms


async def admit_completion(service: Service, body: CompletionBody, terms: Terms) -> Job:
    """Raises EngineError."""
    prompts, ready, params = check_body(service, body, terms)
    found = [
        await _tokenised(each, body, params, prompts, ready) for each in prompts_of(body, service.limits)
    ]
    head = letterhead(service, "cmpl-", body, terms)
    shape = CompletionShape(head, body, params, found, prompts.tokenizer)
    return job_of(service, body, params, found, shape, head, terms)


def prompts_of(body: CompletionBody, limits: Limits) -> list[str | list[int]]:
    """The prompts of a body in any of the four forms. Raises InvalidRequest."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("The prompt is empty.", param="prompt")
    several = [each for each in prompt if not isinstance(each, int)]
    if not several:
        return [[each for each in prompt if isinstance(each, int)]]
    if len(several) > limits.prompts:
        raise InvalidRequest(f"At most {limits.prompts} prompts in one request.", param="prompt")
    return several


async def _tokenised(
    prompt: str | list[int], body: CompletionBody, params: SamplingParams, prompts: Prompts, ready: Ready
) -> Prompt:
    if isinstance(prompt, str):
        special = body.add_special_tokens is not False
        ids = await prompts.of_text(prompt, special=special, max_tokens=longest_prompt(body, ready))
    else:
        ids = prompt
    cut = truncated(ids, body, params, ready)
    if not body.echo:
        return Prompt(cut)
    if isinstance(prompt, str) and len(cut) == len(ids):
        return Prompt(cut, prompt)
    check_vocabulary(cut, ready.vocab_size, "prompt")
    return Prompt(cut, await prompts.text_of(cut))
