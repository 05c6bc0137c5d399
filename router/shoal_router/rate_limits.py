"""What each key may still ask: buckets of requests and tokens that fill with time. No clock of its own, no sockets.

A bucket holds a minute's worth, so that a client may ask in bursts; over longer times its rate holds. Tokens are
estimated when a request begins and corrected when it has ended. A request that is larger than the whole bucket goes on
when that is full, and the bucket then owes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil
from typing import Final

from shoal_router.errors import RateLimited
from shoal_router.keys import Key, Limits
from shoal_router.retry_after import after_known

_LEARNING_RATE: Final = 0.1
_DEFAULT_DURATION_S: Final = 1.0


class Bucket:
    """`what` is left: "tokens" or "requests". `level` may be below zero after something was larger than thought."""

    __slots__ = ("_at_s", "_level", "_lines", "capacity", "rate_s")

    def __init__(self, what: str, per_minute: int, now_s: float, used: float = 0.0) -> None:
        self._lines = (
            f"x-ratelimit-limit-{what}: {per_minute}\r\n"
            f"x-ratelimit-remaining-{what}: %d\r\nx-ratelimit-reset-{what}: %b\r\n"
        ).encode()
        self.capacity = float(per_minute)
        self.rate_s = per_minute / 60
        self._level = self.capacity - used
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """What is left now."""
        if now_s > self._at_s:
            self._level = min(self.capacity, self._level + (now_s - self._at_s) * self.rate_s)
            self._at_s = now_s
        return self._level

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until there is enough for `amount`; 0 when there is now."""
        lacking = min(amount, self.capacity) - self.level(now_s)
        return max(0.0, lacking / self.rate_s)

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount`, or give it back if it is negative."""
        self._level = min(self.capacity, self.level(now_s) - amount)

    def lines(self, now_s: float) -> bytes:
        """OpenAI's header lines of it."""
        level = self.level(now_s)
        return self._lines % (max(0, level), _duration((self.capacity - level) / self.rate_s))


class Meter:
    """One key's accounts; `requests`, `refused` and `tokens` count since the router started."""

    __slots__ = (
        "_chance", "_limits", "in_flight", "mean_s", "refused", "request_bucket", "requests", "token_bucket", "tokens",
    )  # fmt: skip

    def __init__(self, limits: Limits, chance: Callable[[], float], now_s: float) -> None:
        self._chance = chance
        self.requests = self.refused = self.tokens = self.in_flight = 0
        self.mean_s = _DEFAULT_DURATION_S
        self.request_bucket: Bucket | None = None
        self.token_bucket: Bucket | None = None
        self._limits = Limits()
        self.set_limits(limits, now_s)

    def set_limits(self, limits: Limits, now_s: float) -> None:
        """New limits; what was used under the old ones stays used."""
        if limits != self._limits:
            self._limits = limits
            self.request_bucket = _resized("requests", self.request_bucket, limits.requests_per_minute, now_s)
            self.token_bucket = _resized("tokens", self.token_bucket, limits.tokens_per_minute, now_s)

    def begin(self, tokens: float, now_s: float) -> Grant:
        """Take a request of about so many tokens on the account. Raises RateLimited, and takes nothing then."""
        if (most := self._limits.max_in_flight) and self.in_flight >= most:
            why = f"{most} requests of this key are in progress, and it may have no more"
            raise self._refusal(why, self.mean_s / most, now_s)
        requests, bucket = self.request_bucket, self.token_bucket
        if requests is not None and (wait_s := requests.wait_s(1, now_s)):
            why = f"this key may send {requests.capacity:.0f} requests per minute and has used them"
            raise self._refusal(why, wait_s, now_s)
        if bucket is not None and (wait_s := bucket.wait_s(tokens, now_s)):
            why = f"this key may use {bucket.capacity:.0f} tokens per minute; this request needs about {tokens:.0f}"
            raise self._refusal(why, wait_s, now_s)
        if requests is not None:
            requests.take(1, now_s)
        if bucket is not None:
            bucket.take(tokens, now_s)
        self.in_flight += 1
        self.requests += 1
        return Grant(self, tokens, now_s)

    def _refusal(self, why: str, wait_s: float, now_s: float) -> RateLimited:
        self.refused += 1
        after_s = after_known(wait_s, self._chance())
        error = RateLimited(f"{why}; try again in {after_s} s", retry_after_s=after_s)
        name_and_value = (line.partition(b": ") for line in self.lines(now_s).splitlines())
        error.headers = tuple((name, value) for name, _, value in name_and_value)
        return error

    def lines(self, now_s: float) -> bytes:
        """Header lines that tell what is left; empty for a key without such limits."""
        requests, tokens = self.request_bucket, self.token_bucket
        lines = b"" if requests is None else requests.lines(now_s)
        return lines if tokens is None else lines + tokens.lines(now_s)


class Grant:
    """One request on its key's account, until `end`."""

    __slots__ = ("_began_s", "_tokens", "meter")

    def __init__(self, meter: Meter, tokens: float, now_s: float) -> None:
        self.meter = meter
        self._tokens = tokens
        self._began_s = now_s

    def end(self, tokens: float, now_s: float) -> None:
        """It ended, and took so many tokens: they take the place of those that were thought."""
        meter = self.meter
        meter.in_flight -= 1
        meter.mean_s += _LEARNING_RATE * (now_s - self._began_s - meter.mean_s)
        meter.tokens += round(tokens)
        if meter.token_bucket is not None:
            meter.token_bucket.take(tokens - self._tokens, now_s)


class Meters:
    """The meters of all keys, by name; a key that is read anew keeps its own. `chance` draws from [0, 1)."""

    def __init__(self, now: Callable[[], float], chance: Callable[[], float]) -> None:
        self._now = now
        self._chance = chance
        self.by_name: dict[str, Meter] = {}

    def set_keys(self, keys: Iterable[Key]) -> None:
        """The keys there are now."""
        now_s, before = self._now(), self.by_name
        self.by_name = {}
        for key in keys:
            meter = self.by_name[key.name] = before.get(key.name) or Meter(key.limits, self._chance, now_s)
            meter.set_limits(key.limits, now_s)


def _resized(what: str, bucket: Bucket | None, per_minute: int, now_s: float) -> Bucket | None:
    if not per_minute:
        return None
    used = 0.0 if bucket is None else bucket.capacity - bucket.level(now_s)
    return Bucket(what, per_minute, now_s, used)


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: 120ms, 7s, 1m30s."""
    if seconds < 1:
        return b"%dms" % ceil(1000 * seconds)
    minutes, rest = divmod(ceil(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
