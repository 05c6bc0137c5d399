"""Hypothesis strategies for the option models and the spec: any value their fields and rules allow."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MinLen
from hypothesis import strategies as st
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from shoal_api.fields import bare, block_of, entries_of
from shoal_api.quantity import Quantity
from shoal_api.rules import broken_rules
from shoal_api.schema import Strict

# Texts whose pattern or validator no generic strategy can meet.
SAMPLES = {
    "lora": st.sampled_from(["a=/b", "sql=hf://x/y", "n=C:=d"]),
    "endpoint": st.sampled_from(["http://127.0.0.1:8001", "http://host"]),
    "otlp_endpoint": st.sampled_from(["http://127.0.0.1:4318", "https://host/otlp"]),
    "block_size": st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256]),
    "uri": st.sampled_from(
        ["hf://org/name", "file:///models/x.gguf", "pvc://claim/dir", "s3://b/k", "oci://r/i:1"]
    ),
    "size": st.sampled_from(["1Gi", "0.5Ti", "100"]),
    "path": st.sampled_from(["/", "/var/lib/shoal"]),
    "mount_path": st.sampled_from(["/data", "/models/x"]),
    "volumes": st.just([{"name": "data", "emptyDir": {}}]),
    "topology_spread_constraints": st.just([{"maxSkew": 1}]),
    "affinity": st.just({"nodeAffinity": {}}),
    "security_context": st.just({"runAsUser": 1000}),
}
WHOLE = {"volumes", "topology_spread_constraints"}
NAMES = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789", max_size=12).map("n".__add__)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)


def any_of(model: type[Strict], texts: st.SearchStrategy[str] = TEXTS) -> st.SearchStrategy[Any]:
    """Instances of `model` that break no rule."""
    fields = {name: _field(name, info, texts) for name, info in model.model_fields.items()}
    required = {name: fields.pop(name) for name, info in model.model_fields.items() if info.is_required()}
    values = st.fixed_dictionaries(required, optional=fields)
    return values.map(lambda given: model(**given)).filter(lambda value: not broken_rules(value))


def _field(name: str, info: FieldInfo, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    kind = bare(info.annotation)
    if block := block_of(info):
        return any_of(block, texts)
    if get_origin(kind) is tuple:
        if entry := entries_of(info):
            return st.lists(
                any_of(entry, texts), max_size=2, unique_by=lambda each: getattr(each, "name", id(each))
            )
        item = SAMPLES[name] if name in SAMPLES else _value(get_args(kind)[0], (), texts)
        return item if name in WHOLE else st.lists(item, max_size=3)
    return SAMPLES[name] if name in SAMPLES else _value(info.annotation, tuple(info.metadata), texts)


def _value(
    annotation: Any, metadata: tuple[Any, ...], texts: st.SearchStrategy[str]
) -> st.SearchStrategy[Any]:
    limits = [*metadata, *_constraints(annotation)]
    kind = bare(annotation)
    low = next((each.ge for each in limits if isinstance(each, Ge)), None)
    high = next((each.le for each in limits if isinstance(each, Le)), None)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(low, high)
    if kind is float:
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if get_origin(kind) is dict:
        values = st.sampled_from(["1", 2, "500m", "8Gi"]) if Quantity in get_args(kind) else NAMES
        return st.dictionaries(NAMES, values, max_size=2)
    assert kind is str, annotation
    return NAMES if any(hasattr(each, "pattern") and each.pattern for each in limits) else texts


def _constraints(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for part in get_args(annotation):
        if isinstance(part, FieldInfo):
            found += part.metadata
        elif isinstance(part, (Ge, Le, MinLen, MaxLen, AfterValidator)):
            found.append(part)
        else:
            found += _constraints(part)
    return found
