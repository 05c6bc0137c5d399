"""What `field: null` means in a manifest: the default where there is one, a mistake elsewhere. As the API server has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal_api.fields import block_of, entries_of
from shoal_api.problems import Problem
from shoal_api.schema import Strict, yaml_name

MESSAGE = "must not be null; leave the field out"


def settle_nulls(
    value: Mapping[str, Any], model: type[Strict], place: tuple[str | int, ...] = ()
) -> tuple[dict[str, Any], list[Problem]]:
    """The manifest without nulls, and the nulls that stand for nothing. Other mistakes stay as they are."""
    fields = {info.alias or yaml_name(name): info for name, info in model.model_fields.items()}
    settled: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, inner in value.items():
        info = fields.get(key)
        here = (*place, key)
        if inner is None:
            if info and not info.is_required() and info.default is None:
                problems.append(Problem(here, MESSAGE))
            elif not info:
                settled[key] = inner
            continue
        block, entry = (block_of(info), entries_of(info)) if info else (None, None)
        if block and isinstance(inner, Mapping):
            inner, found = settle_nulls(inner, block, here)
            problems += found
        elif entry and isinstance(inner, (list, tuple)):
            pairs = [
                settle_nulls(item, entry, (*here, index)) if isinstance(item, Mapping) else (item, [])
                for index, item in enumerate(inner)
            ]
            inner = [item for item, _ in pairs]
            problems += [problem for _, found in pairs for problem in found]
        settled[key] = inner
    return settled, problems
