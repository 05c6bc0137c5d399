"""What one client may ask of the API process, and for how long. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal_engine.heartbeat import HangLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Defaults suit an engine behind a router; tests pass smaller ones."""

    # Before a request is understood
    header_bytes: int = 32 << 10  # a router passes on 16 KiB and adds its own: 11 for the longest chain
    body_bytes: int = 8 << 20
    resume_bytes: int = 16 << 20  # token ids beside the body of a stream that is continued, some 7 bytes each
    json_depth: int = 32
    json_containers: int = (
        100_000  # objects and arrays in one body; each costs far more memory than its two bytes
    )
    json_strings: int = 200_000
    header_deadline_s: float = 10.0  # from the first byte, however they trickle in
    body_deadline_s: float = 30.0
    keep_alive_s: float = (
        120.0  # longer than a router's pool keeps a connection, so that it never writes to a closed one
    )

    # One request
    prompts: int = 64
    generations: int = 128  # prompts times n
    inline_chars: int = 2_000  # longer prompts are tokenised in a thread
    long_chars: int = 65_536  # and these in a lane of their own, one at a time

    # Its reply
    commit_timeout_s: float = 20.0  # a stream's status waits this long for the first token or the error
    ping_period_s: float = 15.0
    inline_entries: int = 5_000  # larger answers are put into words in a thread
    held: int = 2_000_000  # tokens and log probabilities that wait for one request, some 130 bytes each
    slow_client_s: float = 30.0  # a reader whose buffer stays full this long is gone

    # The engine
    hang: HangLimits = field(default_factory=HangLimits)
    load_progress_s: float = 300.0
    engine_exit_s: float = 5.0  # for the engine process to end after Stop, then it is killed
