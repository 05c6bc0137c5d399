"""`field: null` in a manifest leaves the field out. The API server does the same, before it fills in defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal_api.fields import block_of, entries_of
from shoal_api.schema import Strict, yaml_name


def without_nulls(value: Mapping[str, Any], model: type[Strict]) -> dict[str, Any]:
    """A copy without the nulls of known fields; what does not fit `model` stays as it is, for others to refuse."""
    fields = {info.alias or yaml_name(name): info for name, info in model.model_fields.items()}
    kept: dict[str, Any] = {}
    for key, inner in value.items():
        info = fields.get(key)
        if info is None:
            kept[key] = inner
        elif inner is not None:
            block, entry = block_of(info), entries_of(info)
            if entry and isinstance(inner, list):
                kept[key] = [_settled(item, entry) for item in inner]
            else:
                kept[key] = _settled(inner, block)
    return kept


def _settled(value: Any, block: type[Strict] | None) -> Any:
    return without_nulls(value, block) if block and isinstance(value, Mapping) else value
