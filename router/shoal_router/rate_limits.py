"""What each key may still ask: buckets of requests and tokens that fill with time. No clock of its own, no sockets.

A bucket holds a minute's worth, so that a client may ask in bursts; over longer times its rate holds. Tokens are
estimated when a request begins and corrected when it has ended. A request that is larger than the whole bucket goes on
when that is full, and the bucket then owes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil

from shoal_router.errors import RateLimited
from shoal_router.keys import Key, Limits
from shoal_router.retry_after import after_known
from shoal_router.usage import Usage

_LEARNING_RATE = 0.1
_DEFAULT_DURATION_S = 1.0

Header = tuple[bytes, bytes]


class Bucket:
    """Tokens or requests left. `level` may be below zero after something was larger than thought."""

    __slots__ = ("_at_s", "_level", "capacity", "rate_s")

    def __init__(self, per_minute: int, now_s: float, used: float = 0.0) -> None:
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
            self.request_bucket = _resized(self.request_bucket, limits.requests_per_minute, now_s)
            self.token_bucket = _resized(self.token_bucket, limits.tokens_per_minute, now_s)

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
        error.headers = tuple(self.headers(now_s))
        return error

    def headers(self, now_s: float) -> Iterable[Header]:
        """OpenAI's x-ratelimit headers."""
        for name, bucket in ((b"requests", self.request_bucket), (b"tokens", self.token_bucket)):
            if bucket is not None:
                level = bucket.level(now_s)
                yield b"x-ratelimit-limit-" + name, b"%d" % bucket.capacity
                yield b"x-ratelimit-remaining-" + name, b"%d" % max(0, level)
                yield b"x-ratelimit-reset-" + name, _duration((bucket.capacity - level) / bucket.rate_s)


class Grant:
    """One request on its key's account, until `end`."""

    __slots__ = ("_began_s", "_tokens", "meter")

    def __init__(self, meter: Meter, tokens: float, now_s: float) -> None:
        self.meter = meter
        self._tokens = tokens
        self._began_s = now_s

    def lines(self, now_s: float) -> bytes:
        """Header lines for the reply; empty for a key without such limits."""
        return b"".join([b"%b: %b\r\n" % line for line in self.meter.headers(now_s)])

    def end(self, status: int, usage: Usage | None, now_s: float) -> None:
        """It ended: put the true number of tokens in place of the estimate. An error used none."""
        meter = self.meter
        meter.in_flight -= 1
        meter.mean_s += _LEARNING_RATE * (now_s - self._began_s - meter.mean_s)
        if usage is not None:
            used = float(usage.prompt_tokens + usage.completion_tokens)
        else:
            used = 0.0 if 400 <= status != CLIENT_LEFT else self._tokens
        meter.tokens += round(used)
        if meter.token_bucket is not None:
            meter.token_bucket.take(used - self._tokens, now_s)


CLIENT_LEFT = 499  # an engine may have computed anything for it by then


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

    def begin(self, key: Key, tokens: float) -> Grant | None:
        """Begin a request of a key; None when the key is gone since the request's head came. Raises RateLimited."""
        meter = self.by_name.get(key.name)
        return None if meter is None else meter.begin(tokens, self._now())


def _resized(bucket: Bucket | None, per_minute: int, now_s: float) -> Bucket | None:
    if not per_minute:
        return None
    used = 0.0 if bucket is None else bucket.capacity - bucket.level(now_s)
    return Bucket(per_minute, now_s, used)


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: 120ms, 7s, 1m30s."""
    if seconds < 1:
        return b"%dms" % ceil(1000 * seconds)
    minutes, rest = divmod(ceil(seconds), 60)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
