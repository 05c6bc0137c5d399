"""Makes an admitted stream one that another engine can go on with, or one that goes on with another engine's.

Decides nothing about tokens: the scheduler takes those that have been generated as its own, and resume.py what they say.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import msgspec

from shoal_engine.messages import Ready
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.server.answer import Job
from shoal_engine.server.protocol import StreamOptions
from shoal_engine.server.resumable_events import ResumableEvents
from shoal_engine.server.resume import Resume, Stage, State, StateMismatch, check_point, digest, replay
from shoal_engine.server.sampling import check_vocabulary
from shoal_engine.server.shape import Letterhead
from shoal_engine.server.terms import Terms


def check_state(state: State, fingerprint: str) -> None:
    """Raise StateMismatch if the one who began was another model, or another version of this program."""
    if state.fingerprint != fingerprint:
        raise StateMismatch(
            f"The stream was begun by {state.fingerprint}, this is {fingerprint}: only an engine of the same model, "
            "number format, device and version can go on with it."
        )


def seeded(params: SamplingParams, terms: Terms, seeds: Random) -> SamplingParams:
    """With the seed that the whole stream is drawn from: its own, the one drawn when it began, or a new one."""
    if terms.resume is not None:
        return replace(params, seed=terms.resume.state.seed)
    if params.greedy or params.seed is not None:
        return params
    return replace(params, seed=seeds.getrandbits(63))


def continuable(job: Job, head: Letterhead, options: StreamOptions | None) -> Job:
    """The same from its beginning, telling how far it has come."""
    (submit,) = job.submits
    prompt = digest(submit.prompt_token_ids)
    state = State(head.system_fingerprint, head.id, head.created, submit.params.seed, prompt, None)
    return replace(job, events=ResumableEvents(job.shape, job.meter, options, state))


def continued(job: Job, resume: Resume, options: StreamOptions | None, ready: Ready) -> Job:
    """The same from where its client has seen it. Raises InvalidRequest and StateMismatch."""
    (submit,), (text,), meter = job.submits, job.texts, job.meter
    state, point = resume.state, resume.point
    if state.prompt != digest(submit.prompt_token_ids):
        raise StateMismatch("The prompt became other tokens here than where the stream was begun.")
    check_vocabulary(point.ids, ready.vocab_size, "resume.ids")
    check_point(point, submit.params)
    last = replay(text, point, submit.params, ready.eos_token_ids)
    if point.seen >= Stage.TOKENS:
        job.shape.skip(0, point.ids)
    meter.completion_tokens = len(point.ids)
    if point.cached_tokens is not None:
        state = msgspec.structs.replace(state, cached_tokens=point.cached_tokens)
    meter.keep_cached(state.cached_tokens)
    return replace(
        job,
        submits=[msgspec.structs.replace(submit, output_token_ids=point.ids)],
        events=ResumableEvents(job.shape, meter, options, state, point.seen, last),
    )
