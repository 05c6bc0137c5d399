"""Evaluates the models' CEL rules on a manifest, as the API server would. Knows no rule by name.

Rules see a block as the API server sees it: camelCase, defaults filled in, unset fields absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from cel_expr_python import cel

from shoal_api.problems import Problem
from shoal_api.schema import Rule, Strict, yaml_name


def rules_of(model: type[Strict]) -> tuple[Rule, ...]:
    """The rules of a model and of those it derives from, base first."""
    own = [owner.__dict__.get("rules", ()) for owner in reversed(model.__mro__)]
    return tuple(rule for rules in own for rule in rules)


def broken_rules(value: Strict, old: Strict | None = None) -> list[Problem]:
    """What `value` and its blocks break; with `old`, the value before a change, also the rules of change."""
    return list(_walk(value, old, ()))


def _walk(value: Strict, old: Strict | None, path: tuple[str | int, ...]) -> Iterator[Problem]:
    rules = rules_of(type(value))
    if rules:
        seen = {"self": _as_seen(value)} | ({"oldSelf": _as_seen(old)} if old else {})
        for rule in rules:
            applies = old is not None or not rule.is_transition
            if applies and not _holds(rule, seen):
                yield Problem((*path, *rule.field.split(".")), rule.message)
    for name in type(value).model_fields:
        inner, before, here = getattr(value, name), getattr(old, name, None), (*path, yaml_name(name))
        if isinstance(inner, Strict):
            yield from _walk(inner, before if isinstance(before, Strict) else None, here)
        elif isinstance(inner, tuple):
            for index, item in enumerate(inner):
                if isinstance(item, Strict):  # entries have no counterpart before the change
                    yield from _walk(item, None, (*here, index))


def _as_seen(value: Strict) -> dict[str, Any]:
    seen: dict[str, Any] = _without_empty(value.model_dump(by_alias=True, exclude_none=True, mode="json"))
    return seen


def _without_empty(value: Any) -> Any:
    """Without empty lists and maps: the CRD gives them no default, so the API server sees none."""
    if not isinstance(value, dict):
        return value
    kept = {key: _without_empty(inner) for key, inner in value.items()}
    return {key: inner for key, inner in kept.items() if inner not in ({}, [])}


def _holds(rule: Rule, seen: dict[str, Any]) -> bool:
    # What cannot be evaluated gives an error value and counts as broken, as for the API server.
    return _program(rule.holds).eval(data=seen).value() is True


@cache
def _program(expression: str) -> Any:
    return cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN}).compile(expression)
