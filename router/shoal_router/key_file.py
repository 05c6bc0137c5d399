"""The file of keys: what may stand in it, and its text turned into keys. Pure; key_watch.py reads it.

An error names the entry and never shows a value: any of them may be a key in the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
import yaml
from pydantic import BeforeValidator, Field, ValidationError

from shoal_api.schema import Strict
from shoal_router.keys import Key, Limits, Priority, digest_of

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
MAX_KEYS: Final = 10_000
SHORTEST_KEY: Final = 16

# A header line has no room for other characters, and a label of a metric no use for them.
_KEY: Final = rf"^[\x21-\x7e]{{{SHORTEST_KEY},512}}$"
_NAME: Final = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"

Label = Annotated[str, Field(pattern=_NAME)]
Limit = Annotated[int, Field(ge=1, le=2**40)]


class KeyFileError(ValueError):
    """The file cannot be used; the text says what to correct and holds no key."""


def _moment(value: object) -> object:
    """YAML makes a time of what looks like one, JSON leaves it text."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("no time with a zone")
    return value


class Entry(Strict):
    """One key."""

    name: Label
    key: Annotated[str, Field(pattern=_KEY)] | None = None
    key_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    tenant: Label | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_in_flight: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    shared_cache: bool = False
    expires: Annotated[datetime, BeforeValidator(_moment)] | None = None

    wanted: ClassVar[dict[str, str]] = {
        "name": "1 to 63 letters, digits, dots, dashes or underscores",
        "key": f"{SHORTEST_KEY} to 512 visible ASCII characters, in quotes",
        "keySha256": "64 lower-case hexadecimal digits, in quotes",
        "tenant": "1 to 63 letters, digits, dots, dashes or underscores",
        "priority": "high, normal or low",
        "requestsPerMinute": "a whole number, at least 1",
        "tokensPerMinute": "a whole number, at least 1",
        "maxInFlight": "a whole number, at least 1",
        "sharedCache": "true or false",
        "expires": "a time with its zone, such as 2027-01-31T00:00:00Z",
    }

    def to_key(self) -> Key:
        """The key; exactly one of `key` and `key_sha256` is given."""
        tenant = self.tenant or self.name
        digest = (
            digest_of(self.key.encode()) if self.key is not None else bytes.fromhex(self.key_sha256 or "")
        )
        limits = Limits(self.requests_per_minute or 0, self.tokens_per_minute or 0, self.max_in_flight or 0)
        return Key(
            self.name,
            digest,
            tenant,
            Priority[self.priority.upper()],
            limits,
            cache_salt="" if self.shared_cache else tenant,
            **({} if self.expires is None else {"expires_s": self.expires.timestamp()}),
        )


def read_keys(text: bytes) -> tuple[Key, ...]:
    """The keys of a file in YAML or JSON: `keys` and a list of entries. Raises KeyFileError."""
    if len(text) > MAX_FILE_BYTES:
        raise KeyFileError(f"it has more than {MAX_FILE_BYTES} bytes")
    content = _load(text)
    listed = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(content, dict) or set(content) != {"keys"} or not isinstance(listed, list):
        raise KeyFileError("it must hold one field, `keys`, with a list of entries")
    if len(listed) > MAX_KEYS:
        raise KeyFileError(f"it has more than {MAX_KEYS} keys")
    entries = [_entry(number, each) for number, each in enumerate(listed)]
    keys = tuple(entry.to_key() for entry in entries)
    _check_unique([key.name for key in keys], "name", keys)
    _check_unique([key.digest for key in keys], "key", keys)
    return keys


_SafeLoader = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # libyaml's, where it is there, is ten times as quick


def _load(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)  # much quicker than YAML, whose subset it is
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return _SafeLoader(text).get_single_data()
    except yaml.MarkedYAMLError as error:  # its own text quotes the line
        mark = error.problem_mark
        raise KeyFileError(f"line {mark.line + 1} is not valid YAML" if mark else "no valid YAML") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise KeyFileError("it is neither YAML nor JSON in UTF-8") from None


def _entry(number: int, value: object) -> Entry:
    name = value.get("name") if isinstance(value, dict) else None
    named = isinstance(name, str) and re.fullmatch(_NAME, name)
    where = f"keys[{number}]" + (f" ({name})" if named else "")
    if not isinstance(value, dict) or not all(isinstance(field, str) for field in value):
        raise KeyFileError(f"{where}: must be a mapping of fields such as name and key")
    try:
        entry = Entry.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        raise KeyFileError("; ".join(f"{where}: {_problem(each)}" for each in error.errors())) from None
    if (entry.key is None) == (entry.key_sha256 is None):
        raise KeyFileError(f"{where}: give either key or keySha256")
    return entry


def _problem(error: Any) -> str:
    """What is wrong with one field, without its value; an unknown field's name may itself be a key."""
    if error["type"] == "extra_forbidden":
        return f"has a field that is none of {', '.join(Entry.wanted)}"
    field = str(error["loc"][0])
    return f"{field}: must be {Entry.wanted[field]}" + (
        " (it is missing)" if error["type"] == "missing" else ""
    )


def _check_unique(values: Sequence[object], what: str, keys: Sequence[Key]) -> None:
    first: dict[object, Key] = {}
    for value, key in zip(values, keys, strict=True):
        if value in first:
            raise KeyFileError(f"two entries have the same {what}: {first[value].name} and {key.name}")
        first[value] = key
