"""The base of every model that outsiders write, and the rules a schema cannot say. Has no own fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


def yaml_name(field: str) -> str:
    """`hold_s` -> `holdSeconds`: Kubernetes writes units out, our Python shortens them."""
    return to_camel(field.removesuffix("_s") + "_seconds" if field.endswith("_s") else field)


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition across fields, in CEL: the API server evaluates it, and so does rules.py.

    `self` in `holds` is the block that declares the rule, with defaults filled in. `field` is the field to
    name, camelCase and relative to the block. A rule that reads `oldSelf` judges a change only.
    """

    holds: str
    message: str
    field: str

    @property
    def is_transition(self) -> bool:
        return "oldSelf" in self.holds


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
    rules: ClassVar[tuple[Rule, ...]] = ()
