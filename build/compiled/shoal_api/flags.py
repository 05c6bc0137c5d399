"""Command-line flags from an options model, and back. Knows no option by name: options.py says what there is.

A field `max_model_len` is the flag `--max-model-len`; a field of a nested block carries the block's name
(`--prefix-hash-mean-load-percent`); a field without a default is a positional argument. `--config FILE` takes
the same fields in camelCase, as the operator mounts them into a pod; flags win over the file.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from shoal_api.fields import Leaf, groups, leaves
from shoal_api.problems import Problem, problems_of
from shoal_api.rules import broken_rules
from shoal_api.schema import Strict, yaml_name

Options = TypeVar("Options", bound=Strict)
METAVARS = {int: "N", float: "X", str: "TEXT"}


class OptionError(ValueError):
    """Options that cannot be used; the text names each flag, or the file and its field."""


def add_flags(parser: argparse.ArgumentParser, model: type[Strict]) -> None:
    """Give `parser` a flag for every field of `model`, grouped by declaring class, and `--config`."""
    parser.allow_abbrev = False  # what is short for one option today is ambiguous with the next one
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file of these options in camelCase.")
    for owner, own in groups(model):
        title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", owner.__name__).lower()
        group = parser.add_argument_group(title, (owner.__doc__ or "").partition("\n")[0])
        for leaf in own:
            _add_flag(group, leaf)


def from_args(namespace: argparse.Namespace, model: type[Options]) -> Options:
    """Options from parsed flags and their `--config`. Raises OptionError that says what to correct."""
    file: str | None = getattr(namespace, "config", None)
    values = _read_config(file, model) if file else {}
    given = {leaf.path: leaf for leaf in leaves(model) if hasattr(namespace, _dest(leaf))}
    for path, leaf in given.items():
        _put(values, path, getattr(namespace, _dest(leaf)))
    try:
        options = model.model_validate(values, by_alias=True, by_name=False)
    except ValidationError as error:
        raise _refusal(problems_of(error), model) from None
    if broken := broken_rules(options):
        raise _refusal(broken, model)
    return options


def parse_flags(parser: argparse.ArgumentParser, model: type[Options], argv: Sequence[str]) -> Options:
    """`add_flags`, parse, `from_args`; a mistake ends the process with status 2, as argparse does."""
    add_flags(parser, model)
    try:
        return from_args(parser.parse_args(argv), model)
    except OptionError as error:
        parser.error(str(error))


def to_args(options: Strict) -> list[str]:
    """The shortest command line that gives `options` again: only what differs from the defaults."""
    flags: list[str] = []
    positional: list[str] = []
    for leaf in leaves(type(options)):
        value: Any = options
        for name in leaf.path:
            value = getattr(value, name)
        if leaf.info.is_required():
            positional.append(str(value))
        elif value != leaf.info.default:
            flags += _render(leaf, value)
    separator = ["--"] if any(text.startswith("-") for text in positional) else []
    return flags + separator + positional


def to_config(options: Strict) -> dict[str, Any]:
    """What `--config` reads to give `options` again: camelCase, only what differs from the defaults."""
    config: dict[str, Any] = options.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    return config


def _refusal(problems: list[Problem], model: type[Strict]) -> OptionError:
    """The problems, each under the flag of its field."""
    flags = {tuple(map(yaml_name, leaf.path)): option_of(leaf) for leaf in leaves(model)}
    lines = []
    for problem in problems:
        field = tuple(part for part in problem.place if isinstance(part, str))
        lines.append(f"{flags.get(field, problem.path)}: {problem.message}")
    return OptionError("\n".join(lines))


def _dest(leaf: Leaf) -> str:
    return ".".join(leaf.path)


def option_of(leaf: Leaf) -> str:
    """How the field is written on a command line: --max-model-len, or MODEL when it is positional."""
    if leaf.info.is_required():
        return leaf.path[-1].upper()
    return "--" + "-".join(leaf.path).replace("_", "-")


def _add_flag(group: argparse._ArgumentGroup, leaf: Leaf) -> None:
    # Flags that are not given leave no trace in the namespace, so that they do not hide what the file says.
    common: dict[str, Any] = {"help": _help(leaf), "default": argparse.SUPPRESS}
    kind = leaf.kind
    if leaf.info.is_required():
        group.add_argument(_dest(leaf), nargs="?", type=_reader(leaf), metavar=option_of(leaf), **common)
        return
    common["dest"] = _dest(leaf)
    if kind is bool:
        group.add_argument(option_of(leaf), action=argparse.BooleanOptionalAction, **common)
    elif get_origin(kind) is Literal:
        group.add_argument(option_of(leaf), choices=get_args(kind), **common)
    else:
        action = "append" if get_origin(kind) is tuple else "store"
        metavar = leaf.title or METAVARS.get(kind, "TEXT")
        group.add_argument(option_of(leaf), action=action, type=_reader(leaf), metavar=metavar, **common)


def _help(leaf: Leaf) -> str:
    default = None if leaf.info.is_required() else leaf.info.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    shown = "" if default in (None, (), "") else f" Default: {default}."
    return f"{leaf.info.description}{shown}".replace("%", "%%")


def _reader(leaf: Leaf) -> Callable[[str], Any]:
    """The `type=` of an argument: text to a checked value, or an error that argparse puts after the flag."""
    repeatable = get_origin(leaf.kind) is tuple
    adapter: TypeAdapter[Any] = TypeAdapter(get_args(leaf.kind)[0] if repeatable else leaf.checked_type)

    def read(text: str) -> Any:
        try:
            return adapter.validate_strings(text, strict=False)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(problems_of(error)[0].message) from None

    return read


def _read_config(file: str, model: type[Strict]) -> dict[str, Any]:
    """The mapping in `file`, keys as written. Raises OptionError when the file alone is wrong already."""
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"--config {file}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise OptionError(f"--config {file}: must hold a mapping of options, such as `maxModelLen: 4096`")
    try:
        model.model_validate(values, by_alias=True, by_name=False)
    except ValidationError as error:
        problems = [entry for entry in problems_of(error) if entry.message != "is required"]
        if problems:
            raise OptionError("\n".join(f"--config {file}: {problem}" for problem in problems)) from None
    return values


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set `path`, over what the file says."""
    name, *rest = path
    if not rest:
        values[yaml_name(name)] = value
        return
    block = values.get(yaml_name(name))
    values[yaml_name(name)] = dict(block) if isinstance(block, dict) else {}
    _put(values[yaml_name(name)], tuple(rest), value)


def _render(leaf: Leaf, value: Any) -> list[str]:
    option = option_of(leaf)
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    # `--x=value` in one word: a value may itself begin with a dash.
    return [f"{option}={item}" for item in (value if isinstance(value, tuple) else (value,))]
