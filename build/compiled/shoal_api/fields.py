"""Walks the fields of a model: who declares them, of what type they are. Knows neither flags nor schemas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from shoal_api.schema import Strict


@dataclass(frozen=True, slots=True)
class Leaf:
    """A field that holds a value, not a block. `path` is snake_case: ("prefix_hash", "mean_load_percent")."""

    path: tuple[str, ...]
    info: FieldInfo

    @property
    def checked_type(self) -> Any:
        """The type with all of its constraints, for a TypeAdapter."""
        if not self.info.metadata:
            return self.info.annotation
        return Annotated[self.info.annotation, *self.info.metadata]

    @property
    def kind(self) -> Any:
        """The type without `| None` and constraints: int, bool, Literal[...], tuple[...]."""
        return bare(self.info.annotation)

    @property
    def title(self) -> str | None:
        """What stands for one value in help texts, such as URL, when the type names it."""
        return self.info.title or _title(self.info.annotation)


def bare(annotation: Any) -> Any:
    """`Annotated[int, Field(ge=1)] | None` -> int."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return bare(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return bare(next(part for part in get_args(annotation) if part is not NoneType))
    return annotation


def block_of(info: FieldInfo) -> type[Strict] | None:
    """The model of a field that holds a nested block."""
    return _as_block(bare(info.annotation))


def entries_of(info: FieldInfo) -> type[Strict] | None:
    """The model of the entries of a list of blocks."""
    kind = bare(info.annotation)
    return _as_block(bare(get_args(kind)[0])) if get_origin(kind) is tuple else None


def _as_block(kind: Any) -> type[Strict] | None:
    return kind if isinstance(kind, type) and issubclass(kind, Strict) else None


def groups(model: type[Strict], prefix: tuple[str, ...] = ()) -> Iterator[tuple[type[Strict], list[Leaf]]]:
    """The classes that declare fields of `model`, subclass first, a block after the class that holds it."""
    for owner in model.__mro__:
        if not issubclass(owner, Strict):
            continue
        own = {name: info for name, info in model.model_fields.items() if name in owner.__annotations__}
        leaves = [Leaf((*prefix, name), info) for name, info in own.items() if block_of(info) is None]
        if leaves:
            yield owner, leaves
        for name, info in own.items():
            if block := block_of(info):
                yield from groups(block, (*prefix, name))


def leaves(model: type[Strict]) -> Iterator[Leaf]:
    """Every leaf of `model`, in the order of `groups`."""
    for _, own in groups(model):
        yield from own


def _title(annotation: Any) -> str | None:
    for part in get_args(annotation):
        if title := part.title if isinstance(part, FieldInfo) else _title(part):
            return title
    return None
