"""How the requests of one model are spread and held back: spec.routing, and the router's own defaults.

Declarations only, as in options.py, where the router's process is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shoal_api.option_types import Queued, SecondsOrNone, Weight
from shoal_api.schema import Strict


class PrefixHash(Strict):
    """A request goes where most of its prompt is cached, unless that replica has too much to do."""

    mean_load_percent: Annotated[int, Field(ge=100, le=1000)] = Field(
        default=125,
        description="A replica above this percentage of the mean load gets no request for its cache's sake.",
    )
    prefix_chars: Annotated[int, Field(ge=64, le=65_536)] = Field(
        default=256,
        description="Bytes of a prompt's start that choose the replica when none holds the prefix yet.",
    )
    recompute_weight: Weight = Field(
        default=2.0,
        description="Cost of a prompt token that is not cached; above 1 prices the time taken from others.",
    )
    in_flight_tokens: Weight | None = Field(
        default=None,
        description="Cost of a request in flight, in prompt tokens; unset follows the engines' step times.",
    )


class ColdStart(Strict):
    """Requests that arrive while no replica runs."""

    hold_s: SecondsOrNone = Field(
        default=600.0, description="Seconds that a request waits for the first replica before it gets 503."
    )
    max_queued: Queued = Field(
        default=256, description="Requests that may wait for the first replica; further ones get 503."
    )


class Overload(Strict):
    """Requests that arrive while every replica is full."""

    queue_s: SecondsOrNone = Field(
        default=5.0,
        description="Seconds that a request waits for a replica with room; one that would wait longer gets 429 at once.",
    )
    max_queued: Queued = Field(
        default=1024,
        description="Requests that may wait for a replica with room, of one tenant half of them; further ones get 429.",
    )
    look_ahead_percent: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=12,
        description="Requests that may wait inside a replica, in percent of those it computes at once; at least two.",
    )


class RoutingOptions(Strict):
    """How the requests of one model are spread over its replicas."""

    strategy: Literal["PrefixHash", "LeastLoad"] = Field(
        default="PrefixHash",
        description="PrefixHash prefers a replica that holds the prompt's start, LeastLoad an idle one.",
    )
    prefix_hash: PrefixHash = Field(default=PrefixHash(), description="Settings of strategy PrefixHash.")
    cold_start: ColdStart = Field(default=ColdStart(), description="What happens while no replica runs.")
    overload: Overload = Field(default=Overload(), description="What happens while every replica is full.")
    resume: bool = Field(
        default=True,
        description="Whether a stream whose replica dies goes on at another one, unseen by its client.",
    )
    resume_wait_s: SecondsOrNone = Field(
        default=60.0,
        description="Seconds that such a stream waits for a replica before its client is told of the loss.",
    )
