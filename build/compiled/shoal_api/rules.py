"""Judges across fields as the API server would: CEL rules, and keys of lists. Knows no rule by name.

Rules see a block as the API server sees it: camelCase, defaults filled in, unset fields absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from cel_expr_python import cel
from pydantic.fields import FieldInfo

from shoal_api.fields import entries_of
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
    for name, info in type(value).model_fields.items():
        inner, before, here = getattr(value, name), getattr(old, name, None), (*path, yaml_name(name))
        if isinstance(inner, Strict):
            yield from _walk(inner, before if isinstance(before, Strict) else None, here)
        elif entries_of(info):
            yield from _repeated(inner, info, here)
            for index, item in enumerate(inner):  # entries have no counterpart before the change
                yield from _walk(item, None, (*here, index))


def _repeated(entries: tuple[Strict, ...], info: FieldInfo, path: tuple[str | int, ...]) -> Iterator[Problem]:
    """Entries of a list with keys that have the keys of an earlier entry."""
    extra = info.json_schema_extra
    keys = extra.get("x-kubernetes-list-map-keys") if isinstance(extra, dict) else None
    if not isinstance(keys, list):
        return
    seen: set[tuple[Any, ...]] = set()
    for index, entry in enumerate(entries):
        values = tuple(getattr(entry, str(key)) for key in keys)
        if values in seen:
            yield Problem((*path, index), f"{keys[0]} {values[0]} stands twice in the list")
        seen.add(values)


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
