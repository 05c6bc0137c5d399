"""What many answers say together: rates, and percentiles of each latency. Arithmetic on what client.py saw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shoal_engine.bench.client import Answer

PERCENTILES = (50, 90, 99)
LATENCIES = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "itl_ms": "between two pieces",
    "e2e_ms": "whole request",
}


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest, as numpy's default. Raises ValueError without values."""
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one load test that took `seconds`. Failed requests count in no rate and no latency."""

    answers: list[Answer]
    seconds: float

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.error]

    @property
    def failures(self) -> Counter[str]:
        return Counter(answer.error for answer in self.answers if answer.error)

    def values_ms(self, name: str) -> list[float]:
        """Every value of one of LATENCIES."""
        good = self.good
        if name == "ttft_ms":
            seconds = [answer.first_s for answer in good]
        elif name == "tpot_ms":
            seconds = [answer.per_token_s for answer in good if answer.per_token_s is not None]
        elif name == "itl_ms":
            seconds = [gap for answer in good for gap in answer.gaps_s]
        else:
            seconds = [answer.end_s for answer in good]
        return [value * 1e3 for value in seconds]

    def rates(self) -> dict[str, float]:
        prompt = sum(answer.prompt_tokens for answer in self.good)
        output = sum(answer.output_tokens for answer in self.good)
        return {
            "requests_per_s": len(self.good) / self.seconds,
            "total_tokens_per_s": (prompt + output) / self.seconds,
            "output_tokens_per_s": output / self.seconds,
        }

    def latencies(self) -> dict[str, dict[str, float]]:
        """mean and percentiles of each latency of which there is a value."""
        found = {}
        for name in LATENCIES:
            if values := self.values_ms(name):
                found[name] = {"mean": sum(values) / len(values)}
                found[name] |= {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}
        return found

    def record(self) -> dict[str, object]:
        return {
            "requests": len(self.good),
            "failures": dict(self.failures),
            "seconds": self.seconds,
            "prompt_tokens": sum(answer.prompt_tokens for answer in self.good),
            "cached_tokens": sum(answer.cached_tokens for answer in self.good),
            "output_tokens": sum(answer.output_tokens for answer in self.good),
            **self.rates(),
            **self.latencies(),
        }

    def __str__(self) -> str:
        prompt = sum(answer.prompt_tokens for answer in self.good)
        cached = sum(answer.cached_tokens for answer in self.good)
        lines = [
            f"{name.replace('_per_s', '/s').replace('_', ' '):<22}{rate:12,.2f}"
            for name, rate in self.rates().items()
        ]
        lines.append(f"{'ms':<22}{'mean':>10}" + "".join(f"{f'p{percent}':>10}" for percent in PERCENTILES))
        for name, values in self.latencies().items():
            lines.append(f"{LATENCIES[name]:<22}" + "".join(f"{value:10,.2f}" for value in values.values()))
        lines.append(
            f"{len(self.good)} requests, {prompt} prompt tokens ({cached / max(prompt, 1):.0%} cached), "
            f"{self.seconds:.2f} s"
        )
        lines += [f"{count} failed: {error}" for error, count in self.failures.most_common()]
        return "\n".join(lines)
