"""The types of single options: what a count, a port or an endpoint may be. Knows no option by name."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError(f"must be a power of two, {value} is not")
    return value


def _lora_path(value: str) -> str:
    name, _, path = value.partition("=")
    if not name or not path:
        raise ValueError(f'must be NAME=PATH, "{value}" is not')
    return value


def _endpoint(value: str) -> str:
    if not re.fullmatch(r"http://[^/\s]+/?", value):
        raise ValueError(f'must be a base URL such as http://10.0.0.7:8000, "{value}" is not')
    return value.rstrip("/")


def _collector(value: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", value):
        raise ValueError(f'must be an OTLP/HTTP base URL such as http://collector:4318, "{value}" is not')
    return value.rstrip("/")


Count = Annotated[int, Field(ge=1, le=2**24)]
CountOrNone = Annotated[int, Field(ge=0, le=2**40)]
Queued = Annotated[int, Field(ge=0, le=100_000)]
ShareOrNone = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.01, le=1.0)]
Percent = Annotated[int, Field(ge=0, le=100)]
Bytes = Annotated[int, Field(ge=1024, le=2**50)]
Seconds = Annotated[float, Field(ge=0.001, le=86_400)]
SecondsOrNone = Annotated[float, Field(ge=0, le=86_400)]
Weight = Annotated[float, Field(ge=0, le=10_000)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Seed = Annotated[int, Field(ge=0, le=2**53 - 1)]  # exact in JSON, whoever reads it
GroupSize = Annotated[int, Field(ge=1, le=64)]
BlockTokens = Annotated[int, Field(ge=1, le=256), AfterValidator(_power_of_two)]
Name = Annotated[str, Field(title="NAME", min_length=1, max_length=253)]
Place = Annotated[str, Field(title="PATH", min_length=1, max_length=1024)]
Template = Annotated[str, Field(title="PATH", min_length=1, max_length=65_536)]
LoraPath = Annotated[str, Field(title="NAME=PATH", max_length=1024), AfterValidator(_lora_path)]
LoraPaths = Annotated[tuple[LoraPath, ...], Field(max_length=64, strict=False)]
Endpoint = Annotated[str, Field(title="URL", max_length=1024), AfterValidator(_endpoint)]
Collector = Annotated[str, Field(title="URL", max_length=1024), AfterValidator(_collector)]
Namespaces = Annotated[tuple[Name, ...], Field(max_length=256, strict=False)]
Endpoints = Annotated[tuple[Endpoint, ...], Field(max_length=1024, strict=False)]
Key = Annotated[str, Field(title="KEY", min_length=1, max_length=1024)]
Keys = Annotated[tuple[Key, ...], Field(max_length=64, strict=False)]
