"""What is wrong with a value somebody wrote: where, what, and what to write instead. Knows no Kubernetes.

Pydantic finds the problems; here they get the words and the path (`spec.engine.blockSize`) their author uses.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError


@dataclass(frozen=True, slots=True)
class Problem:
    """`place` holds keys and list indices; `fix` is what to do, empty where `message` says it already."""

    place: tuple[str | int, ...]
    message: str
    fix: str = ""

    @property
    def path(self) -> str:
        """Dotted, as in spec.adapters[0].name."""
        return join_path(self.place)

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return f"{where}{self.message}" + (f"; {self.fix}" if self.fix else "")


def join_path(parts: Iterable[str | int]) -> str:
    """("spec", "adapters", 0, "name") -> "spec.adapters[0].name"."""
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that `word` is likely a slip of, or an empty string."""
    by_lower = {name.replace("_", "").replace("-", "").lower(): name for name in known}
    key = word.replace("_", "").replace("-", "").lower()
    found = difflib.get_close_matches(key, by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else ""


def show(value: object) -> str:
    """A value in an error message: as in JSON, and short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


Say = Callable[[Any, Mapping[str, Any]], str]

MESSAGES: dict[str, Say] = {
    "missing": lambda value, context: "is required",
    "extra_forbidden": lambda value, context: "unknown field",
    "int_type": lambda value, context: f"must be a whole number, not {show(value)}",
    "int_parsing": lambda value, context: f"must be a whole number, not {show(value)}",
    "int_from_float": lambda value, context: f"must be a whole number, not {show(value)}",
    "float_type": lambda value, context: f"must be a number, not {show(value)}",
    "float_parsing": lambda value, context: f"must be a number, not {show(value)}",
    "finite_number": lambda value, context: f"must be a finite number, not {show(value)}",
    "string_type": lambda value, context: f"must be text, not {show(value)}; put it in quotes",
    "bool_type": lambda value, context: f"must be true or false, not {show(value)}",
    "model_type": lambda value, context: f"must be a mapping of fields, not {show(value)}",
    "dict_type": lambda value, context: f"must be a mapping, not {show(value)}",
    "tuple_type": lambda value, context: f"must be a list, not {show(value)}",
    "greater_than_equal": lambda value, context: f"must be at least {context['ge']}, not {show(value)}",
    "less_than_equal": lambda value, context: f"must be at most {context['le']}, not {show(value)}",
    "literal_error": lambda value, context: f"must be {context['expected']}, not {show(value)}",
    "string_pattern_mismatch": lambda value, context: (
        f"must match {context['pattern']}, {show(value)} does not"
    ),
    "string_too_short": lambda value, context: f"must have at least {context['min_length']} characters",
    "string_too_long": lambda value, context: f"must have at most {context['max_length']} characters",
    "too_short": lambda value, context: f"must have at least {context['min_length']} entries",
    "too_long": lambda value, context: f"must have at most {context['max_length']} entries",
    "value_error": lambda value, context: str(context["error"]),
}


def problems_of(error: ValidationError) -> list[Problem]:
    """Every problem pydantic found, in its order."""
    problems = []
    for entry in error.errors():
        say = MESSAGES.get(entry["type"])
        message = say(entry["input"], entry.get("ctx", {})) if say else entry["msg"]
        problems.append(Problem(entry["loc"], message))
    return problems
