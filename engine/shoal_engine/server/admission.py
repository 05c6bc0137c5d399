"""From a checked body to the requests the engine gets, or the reason why not. Values in, values out."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal_engine.choice_text import ChoiceText
from shoal_engine.errors import ContextTooLong, InvalidRequest, ModelNotFound
from shoal_engine.messages import Ready, Submit
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.server.answer import Job
from shoal_engine.server.continuation import check_state, continuable, continued, seeded
from shoal_engine.server.events import Events
from shoal_engine.server.prompts import Prompts
from shoal_engine.server.protocol import ChatBody, Generate, TokenizeBody
from shoal_engine.server.resume import resumable
from shoal_engine.server.sampling import check_supported, check_token_ids, check_vocabulary, sampling_params
from shoal_engine.server.service import Service
from shoal_engine.server.shape import Letterhead, Meter, Shape
from shoal_engine.server.terms import Terms

_SALT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PRIORITIES = 2**31


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as tokens; `text` as well if it must be echoed."""

    token_ids: list[int]
    text: str = ""


def check_body(service: Service, body: Generate, terms: Terms) -> tuple[Prompts, Ready, SamplingParams]:
    """Refuse what can be refused before the prompt is looked at. Raises EngineError."""
    prompts, ready = service.open()
    if terms.resume is not None:
        check_state(terms.resume.state, service.fingerprint)
    service.client.check_room(1)  # before the prompt costs anything
    check_model(body.model, service.model)
    check_supported(body)
    if body.request_id is not None and not valid_request_id(body.request_id):
        raise bad_request_id("request_id")
    params = sampling_params(body, service.defaults)
    check_token_ids(params, ready.vocab_size)
    return prompts, ready, params


def check_model(asked: str | None, served: str) -> None:
    if asked is not None and asked != served:
        raise ModelNotFound(f"The model {asked[:200]!r} is not served here; {served!r} is.", param="model")


def valid_request_id(request_id: str) -> bool:
    """Ids end up in headers and logs: nothing may be hidden in them."""
    return _REQUEST_ID.fullmatch(request_id) is not None


def bad_request_id(param: str) -> InvalidRequest:
    return InvalidRequest(f"{param} takes 1 to 128 letters, digits, '.', '_' and '-'.", param=param)


def job_of(
    service: Service,
    body: Generate,
    params: SamplingParams,
    prompts: Sequence[Prompt],
    shape: Shape,
    head: Letterhead,
    terms: Terms,
) -> Job:
    """The last step of admission. Raises EngineError; the engine may still refuse it for want of room."""
    found, ready = service.open()  # again: the world may have changed while the prompt was tokenised
    if len(prompts) * params.n > service.limits.generations:
        raise InvalidRequest(f"prompts times n must not exceed {service.limits.generations}.", param="n")
    continues = terms.resumable and resumable(body, params, len(prompts))
    if continues:
        params = seeded(params, terms, service.seeds)
    submits = submits_of(body, prompts, params, ready)
    submits = terms.router.applied(submits, cut=body.truncate_prompt_tokens is not None)
    if params.prompt_logprobs is not None:
        entries = (1 + params.prompt_logprobs) * sum(len(each.prompt_token_ids) for each in submits)
        if entries > service.limits.held:
            raise InvalidRequest(
                f"The log probabilities of these prompts are {entries}; at most {service.limits.held} fit in "
                "one answer.",
                param="prompt_logprobs",
            )
    # echo with max_tokens 0: the one token is computed only for the prompt's log probabilities.
    silent = body.max_tokens == 0
    texts = [
        ChoiceText(found.tokenizer, each.prompt_token_ids, each.params, silent=silent) for each in submits
    ]
    meter = Meter(sum(len(prompt.token_ids) for prompt in prompts), params.n)
    events = Events(shape, meter, body.stream_options) if body.stream else None
    job = Job(submits, texts, shape, meter, events)
    if terms.resume is None:
        service.metrics.on_admitted(params.n)
        return continuable(job, head, body.stream_options) if continues else job
    if not continues:
        raise InvalidRequest("A stream of this request cannot be continued.", param="request")
    job = continued(job, terms.resume, body.stream_options, ready)
    service.metrics.on_resumed()
    return job


def submits_of(
    body: Generate, prompts: Sequence[Prompt], params: SamplingParams, ready: Ready
) -> Sequence[Submit]:
    """One Submit per choice, n for each prompt in turn; the client gives them their ids. Raises
    InvalidRequest.
    """
    if body.cache_salt is not None and not _SALT.fullmatch(body.cache_salt):
        raise InvalidRequest("cache_salt takes 1 to 64 letters, digits, '_' and '-'.", param="cache_salt")
    priority = body.priority or 0
    if not -_PRIORITIES <= priority < _PRIORITIES:
        raise InvalidRequest("priority must fit in 32 bits.", param="priority")
    submits = []
    for prompt in prompts:
        check_vocabulary(prompt.token_ids, ready.vocab_size, "prompt")
        fitted = fit(len(prompt.token_ids), params, ready.max_model_len)
        submits += [
            Submit("", prompt.token_ids, each, priority, body.cache_salt or "") for each in fitted.fan_out()
        ]
    return submits


def longest_prompt(body: Generate, ready: Ready) -> int | None:
    """Most tokens a prompt may have; None if it will be cut to fit anyway."""
    return None if body.truncate_prompt_tokens is not None else ready.max_model_len - 1


def truncated(ids: list[int], body: Generate, params: SamplingParams, ready: Ready) -> list[int]:
    """The last tokens that truncate_prompt_tokens asks for; -1 keeps what fits beside max_tokens."""
    keep = body.truncate_prompt_tokens
    if keep is None:
        return ids
    if keep == -1:
        keep = max(ready.max_model_len - (params.max_tokens or 1), 1)
    if keep < 1:
        raise InvalidRequest(
            "truncate_prompt_tokens must be -1 or at least 1.", param="truncate_prompt_tokens"
        )
    return ids[-keep:]


def fit(prompt_tokens: int, params: SamplingParams, max_model_len: int) -> SamplingParams:
    """`params` with max_tokens settled. Raises ContextTooLong."""
    if prompt_tokens == 0:
        raise InvalidRequest("The prompt is empty.", param="prompt")
    room = max_model_len - prompt_tokens
    if room < 1:
        raise ContextTooLong(
            f"The prompt has {prompt_tokens} tokens; the model's context holds {max_model_len}, "
            "the answer included. Shorten the prompt."
        )
    if params.max_tokens is None:
        if params.min_tokens > room:
            raise ContextTooLong(
                f"min_tokens {params.min_tokens} exceeds the {room} tokens left.", param="min_tokens"
            )
        return replace(params, max_tokens=room)
    if params.max_tokens > room:
        raise ContextTooLong(
            f"The prompt's {prompt_tokens} tokens and max_tokens {params.max_tokens} exceed the model's "
            f"context of {max_model_len}. Shorten the prompt or ask for at most {room} tokens.",
            param="max_tokens",
        )
    return params


def letterhead(service: Service, prefix: str, body: Generate, terms: Terms) -> Letterhead:
    chosen, created = prefix + (body.request_id or terms.request_id), int(time.time())
    if terms.resume is not None:
        chosen, created = terms.resume.state.id, terms.resume.state.created
    return Letterhead(chosen, created, service.model, service.fingerprint)


def template_switches(body: ChatBody | TokenizeBody) -> dict[str, bool | None]:
    """What the chat template is told besides the messages.

    Booleans only: a template is no place for clients' data.
    """
    switches = dict(body.chat_template_kwargs or {})
    if "tools" in switches or not all(isinstance(value, bool) for value in switches.values()):
        raise InvalidRequest("chat_template_kwargs takes only true and false.", param="chat_template_kwargs")
    return switches | {
        "add_generation_prompt": body.add_generation_prompt,
        "continue_final_message": bool(body.continue_final_message),
    }
