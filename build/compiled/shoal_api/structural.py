"""From a model to the structural schema that a CRD may hold. Pure; what surrounds the schema is crd.py.

A structural schema has no references, titles or unions, and the API server refuses unknown fields on its own.
Defaults stand at each field and are filled in before a rule is evaluated; empty lists and maps get none, which
keeps stored objects short.
"""

from __future__ import annotations

from typing import Any

from shoal_api.fields import block_of, entries_of
from shoal_api.rules import rules_of
from shoal_api.schema import Strict, yaml_name

Schema = dict[str, Any]

# What a node may hold, in the order that reads best. Everything else that pydantic writes is left out.
KEYWORDS = (
    "description",
    "type",
    "format",
    "default",
    "enum",
    "minimum",
    "maximum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "anyOf",
    "items",
    "additionalProperties",
    "required",
    "properties",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)


def structural_schema(model: type[Strict]) -> Schema:
    """The schema of `model` and of the blocks in it, with their rules."""
    generated = model.model_json_schema(by_alias=True)
    schema = _node(generated, generated.get("$defs", {}))
    _add_rules(schema, model)
    return schema


def _node(written: Schema, definitions: Schema) -> Schema:
    """One node and all below it."""
    node = dict(_resolve(written, definitions))
    if properties := node.get("properties"):
        node["properties"] = {name: _node(inner, definitions) for name, inner in properties.items()}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            node[key] = _node(node[key], definitions)
        else:
            node.pop(key, None)
    if node.get("type") == "integer":
        node["format"] = "int64"
    if "default" in node:
        node["default"] = _default(node)
    return {key: node[key] for key in KEYWORDS if key in node and (key, node[key]) != ("default", None)}


def _resolve(node: Schema, definitions: Schema) -> Schema:
    """Follow a reference, and take `X or null` for X: what is unset is left out, never null."""
    options = [option for option in node.get("anyOf", ()) if option != {"type": "null"}]
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
    elif len(options) == 1:
        target = options[0]
    else:
        return node
    rest = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
    return {**_resolve(target, definitions), **rest}


def _default(node: Schema) -> Any:
    """The default as the CRD holds it: of a block the defaults of its fields, of what is empty none.

    The API server judges a block's default by the block's rules before it fills in the fields, so {} will not do.
    """
    default = node["default"]
    if default is not None and "properties" in node:
        default = {name: inner["default"] for name, inner in node["properties"].items() if "default" in inner}
    return None if default in ([], {}, "") else default


def _add_rules(schema: Schema, model: type[Strict]) -> None:
    """Put the rules of each block beside its properties."""
    if rules := rules_of(model):
        schema["x-kubernetes-validations"] = [
            {"rule": rule.holds, "message": rule.message, "fieldPath": f".{rule.field}"} for rule in rules
        ]
    for name, info in model.model_fields.items():
        inner = schema["properties"][info.alias or yaml_name(name)]
        if block := block_of(info):
            _add_rules(inner, block)
        elif entry := entries_of(info):
            _add_rules(inner["items"], entry)
