"""The reference page, generated from the models: manifest, status and options, field by field. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from shoal_api.fields import bare, block_of, entries_of, groups
from shoal_api.flags import option_of
from shoal_api.operator_options import OperatorOptions
from shoal_api.options import RouterOptions, ServeOptions
from shoal_api.rules import rules_of
from shoal_api.schema import Strict, yaml_name
from shoal_api.spec import LLMDeployment, LLMDeploymentSpec
from shoal_api.status import LLMDeploymentStatus

WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def reference_page() -> str:
    """Markdown."""
    parts = [
        "# Reference\n\nAll that a manifest may say, the operator reports and the programs take.\n",
        f"## LLMDeployment\n\n{LLMDeployment.__doc__}\n{_rules(LLMDeployment)}",
        *_blocks("spec", LLMDeploymentSpec),
        *_blocks("status", LLMDeploymentStatus),
        _options("shoal serve", ServeOptions),
        _options("shoal router", RouterOptions),
        _options("shoal operator", OperatorOptions),
    ]
    return "\n".join(part for part in parts if part)


def _blocks(path: str, model: type[Strict]) -> Iterator[str]:
    """A section for a block, then one for each block in it."""
    lines = [
        f"### {path}\n",
        f"{(model.__doc__ or '').strip()}\n",
        "| field | type | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    inner: list[tuple[str, type[Strict]]] = []
    for name, info in model.model_fields.items():
        field = info.alias or yaml_name(name)
        if block := block_of(info):
            inner.append((f"{path}.{field}", block))
        elif block := entries_of(info):
            inner.append((f"{path}.{field}[]", block))
        lines.append(f"| `{field}` | {_columns(info)} |")
    yield "\n".join(lines) + f"\n{_rules(model)}"
    for place, block in inner:
        yield from _blocks(place, block)


def _rules(model: type[Strict]) -> str:
    lines = [f"- `{rule.field}` {rule.message}" for rule in rules_of(model)]
    return "\nRules:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _options(command: str, model: type[Strict]) -> str:
    lines = [f"## {command}\n", "| option | value | default | meaning |", "| --- | --- | --- | --- |"]
    for _, leaves in groups(model):
        lines += [f"| `{option_of(leaf)}` | {_columns(leaf.info)} |" for leaf in leaves]
    return "\n".join(lines) + "\n"


def _columns(info: FieldInfo) -> str:
    return f"{_type(info)} | {_default(info)} | {(info.description or '').replace('|', chr(92) + '|')}"


def _type(info: FieldInfo) -> str:
    kind = bare(info.annotation)
    if block_of(info):
        return "block"
    if get_origin(kind) is tuple:
        return "list of blocks" if entries_of(info) else f"list of {_word(bare(get_args(kind)[0]))}"
    return _word(kind)


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    return "map" if get_origin(kind) is dict else WORDS.get(kind, "amount")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    if block_of(info) or info.default in (None, (), {}, ""):
        return ""
    if isinstance(info.default, bool):
        return f"`{str(info.default).lower()}`"
    return f"`{info.default:g}`" if isinstance(info.default, float) else f"`{info.default}`"
