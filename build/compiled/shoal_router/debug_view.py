"""What /debug shows, as plain values: replicas, models, queues, the last choices, errors and ejections.

viewer.py makes them, debug_page.py draws them, and as JSON they are what programs get.
"""

from __future__ import annotations

import msgspec


class Replica(msgspec.Struct, frozen=True):
    """Counts are since the replica was added; `seats` and `ceiling` are requests, 0 where there is no limit."""

    name: str
    address: str
    state: str
    cordoned: bool
    models: list[str]
    linked: bool  # its engine pushes load and cache
    in_flight: int
    in_flight_from_others: int
    seats: int
    ceiling: int
    queued_tokens: int
    running: int
    waiting: int
    kv_usage: float
    kv_tokens: int
    index_blocks: int
    requests: int
    faults: int
    ejections: int
    prompt_tokens: int
    predicted_cached_tokens: int
    cached_tokens: int
    contradictions: int
    updates: int
    gaps: int


class Model(msgspec.Struct, frozen=True):
    """Prices are in prompt tokens (policy.py)."""

    name: str
    ready: int
    replicas: int
    held: int
    bytes_per_token: float
    in_flight_tokens: float
    seat_tokens: float


class Queue(msgspec.Struct, frozen=True):
    """Requests of one tenant that wait for one model."""

    model: str
    tenant: str
    band: str
    requests: int
    tokens: int


class Option(msgspec.Struct, frozen=True):
    """One replica that a request could have gone to, as it was believed to be then; tokens and requests."""

    replica: str
    cost: int
    cached: int
    queued: int
    in_flight: int
    chosen: bool


class Choice(msgspec.Struct, frozen=True):
    """Where one attempt of a request went, and why. `outcome` is empty while it lasts."""

    at: float  # seconds of the epoch
    request_id: str
    model: str
    prompt_tokens: int
    replica: str
    status: int
    outcome: str
    cached_tokens: int | None  # as the engine counted
    options: list[Option]  # the cheapest first


class Event(msgspec.Struct, frozen=True):
    """Something that went wrong, or was put right."""

    at: float  # seconds of the epoch
    kind: str  # an error's code, or a replica's new state
    text: str


class View(msgspec.Struct, frozen=True):
    """All of it, as it is now. One process's: with several, each request for it may meet another one."""

    at: float
    version: str
    process: int
    up_s: float
    draining: bool
    requests: int
    active_requests: int
    held_requests: int
    held_bytes: int
    client_connections: int
    index_blocks: int
    prompt_tokens: int
    predicted_cached_tokens: int
    cached_tokens: int
    retries: int
    resumes: int
    errors: int
    quarantined: int
    replicas: list[Replica]
    models: list[Model]
    queues: list[Queue]
    choices: list[Choice]  # the last one first
    events: list[Event]  # the last one first
