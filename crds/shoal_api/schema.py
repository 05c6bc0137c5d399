"""The base of every model that outsiders write: strict, immutable, camelCase in YAML. Has no own fields."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


def yaml_name(field: str) -> str:
    """`hold_s` -> `holdSeconds`: Kubernetes writes units out, our Python shortens them."""
    return to_camel(field.removesuffix("_s") + "_seconds" if field.endswith("_s") else field)


class Strict(BaseModel):
    """Frozen; refuses unknown fields and text for numbers; reads snake_case and camelCase."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=yaml_name,
        validate_by_name=True,
        validate_by_alias=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
