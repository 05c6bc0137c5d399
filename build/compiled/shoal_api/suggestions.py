"""What the author of an unknown field or a misspelt value probably meant. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from shoal_api.fields import bare, block_of, entries_of
from shoal_api.problems import Problem, closest
from shoal_api.schema import Strict, yaml_name

# Options of `shoal serve`, and fields of other platforms, that a manifest says elsewhere.
ELSEWHERE = {
    "tensorParallelSize": "spec.parallelism.tensor",
    "pipelineParallelSize": "spec.parallelism.pipeline",
    "servedModelName": "spec.model.name",
    "revision": "spec.model.revision",
    "model": "spec.model.uri",
    "url": "spec.model.uri",
    "lora": "spec.adapters",
    "drainTimeoutSeconds": "spec.drain.timeoutSeconds",
    "minReplicas": "spec.autoscaling.minReplicas",
    "maxReplicas": "spec.autoscaling.maxReplicas",
    "image": "spec.engine.image",
    "env": "spec.engine.env",
    "nodeSelector": "spec.podTemplate.nodeSelector",
    "tolerations": "spec.podTemplate.tolerations",
    "affinity": "spec.podTemplate.affinity",
    "terminationGracePeriodSeconds": "spec.drain.timeoutSeconds",
    "strategy": "spec.rollout.type",
}


def with_suggestion(problem: Problem, model: type[Strict], document: Any) -> Problem:
    """The problem with a fix where one can be guessed; `document` is what was written instead of a `model`."""
    parents, last = problem.place[:-1], problem.place[-1] if problem.place else ""
    owner = _model_at(model, parents)
    if problem.fix or owner is None or not isinstance(last, str):
        return problem
    fields = {info.alias or yaml_name(name): info for name, info in owner.model_fields.items()}
    if problem.message == "unknown field":
        return replace(problem, fix=_instead(last, fields))
    kind = bare(fields[last].annotation) if last in fields else None
    written = _value_at(document, problem.place)
    if get_origin(kind) is Literal and isinstance(written, str) and written not in get_args(kind):
        meant = closest(written, get_args(kind))
        return replace(problem, fix=f"did you mean {meant}?") if meant else problem
    return problem


def _instead(unknown: str, fields: Iterable[str]) -> str:
    if meant := closest(unknown, fields):
        return f"did you mean {meant}?"
    if unknown in ELSEWHERE:
        return f"write {ELSEWHERE[unknown]}"
    return f"known here: {', '.join(sorted(fields))}"


def _value_at(document: Any, place: tuple[str | int, ...]) -> Any:
    for part in place:
        try:
            document = document[part]
        except (LookupError, TypeError):
            return None
    return document


def _model_at(model: type[Strict], place: tuple[str | int, ...]) -> type[Strict] | None:
    """The model of the block at `place`."""
    for part in place:
        if isinstance(part, int):
            continue
        found = next((i for n, i in model.model_fields.items() if (i.alias or yaml_name(n)) == part), None)
        inner = (block_of(found) or entries_of(found)) if found else None
        if inner is None:
            return None
        model = inner
    return model
