"""Typed look-ups in what a file says about a model. A refusal names file, field and what was expected."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from shoal_engine.errors import ModelLoadError

D = TypeVar("D")
_REQUIRED: Any = object()
MAX_JSON_BYTES = 256 << 20  # the largest published tokenizer.json is a tenth of this


class Fields:
    """Values from a `source`, a file's path. `null` is absence; without a default absence is an error."""

    def __init__(self, source: Path | str, values: Mapping[str, Any], prefix: str = "") -> None:
        self.source = source
        self._values = values
        self._prefix = prefix

    def mentions(self, name: str) -> bool:
        """Whether the field is there, be it as `null`: for fields where leaving out and ruling out differ."""
        return self._prefix + name in self._values

    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def any(self, name: str) -> Any:
        """The value as it is, None when absent: for fields of several forms."""
        return self._values.get(self._prefix + name)

    def integer(self, name: str, default: D = _REQUIRED) -> int | D:
        value: int | D = self._get(name, default)
        if value is not default and not _is_integer(value):
            raise self.refuse(name, value, "a whole number")
        return value

    def number(self, name: str, default: D = _REQUIRED) -> float | D:
        value = self._get(name, default)
        if value is default:
            return value
        if not _is_number(value):
            raise self.refuse(name, value, "a finite number")
        return float(value)

    def boolean(self, name: str, default: D = _REQUIRED) -> bool | D:
        value = self._get(name, default)
        if value is not default and not isinstance(value, bool):
            raise self.refuse(name, value, "true or false")
        return value

    def text(self, name: str, default: D = _REQUIRED) -> str | D:
        value = self._get(name, default)
        if value is not default and not isinstance(value, str):
            raise self.refuse(name, value, "a text")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """One number, a list of them, or nothing at all."""
        value = self._get(name, ())
        values = value if isinstance(value, list | tuple) else (value,)
        if not all(_is_integer(item) for item in values):
            raise self.refuse(name, value, "a whole number or a list of them")
        return tuple(values)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty when the field is absent."""
        value = self._get(name, ())
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self.refuse(name, value, "a list of texts")
        return tuple(value)

    def mapping(self, name: str, default: D = _REQUIRED) -> Mapping[str, Any] | D:
        value: Mapping[str, Any] | D = self._get(name, default)
        if value is not default and not isinstance(value, Mapping):
            raise self.refuse(name, value, "an object")
        return value

    def inside(self, name: str) -> Fields:
        """The fields of an object held by a field; none when that field is absent."""
        return Fields(f"{self.source}: {self._prefix}{name}", self.mapping(name, {}))

    def refuse(self, name: str, value: object, expected: str) -> ModelLoadError:
        return ModelLoadError(
            f"{self.source}: field {self._prefix + name!r} is {_shown(value)}, expected {expected}"
        )

    def choose(self, name: str, value: str, supported: Iterable[str]) -> str:
        """`value` of field `name` if it is one of `supported`; the refusal lists them."""
        if value not in supported:
            known = ", ".join(sorted(supported))
            raise self.refuse(name, value, f"one of {known}; serve a model that uses one of these")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(self._prefix + name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ModelLoadError(
                f"{self.source}: field {self._prefix + name!r} is missing; download the file again"
            )
        return default


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelLoadError when it cannot be read, is no JSON, or no object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelLoadError(
                f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB; it does not belong to a model"
            )
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}; is the download complete?") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} holds {_shown(value)} where an object is expected; download it again")
    return value


def _is_integer(value: object) -> bool:
    """JSON's integers are boundless; none that says something about a model is larger than 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 64


def _is_number(value: object) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
