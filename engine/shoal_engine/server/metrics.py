"""What /metrics says. vLLM's names for what vLLM measures, so that its dashboards and routers work; shoal:*
beside them.

Recording is a few additions per step and request; names, labels and text are made only when somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from shoal_engine.messages import Outputs, Ready, Stats
from shoal_engine.server.engine_client import Open
from shoal_engine.server.histogram import Histogram

Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)


def _ladder(low: float, high: float, steps: tuple[float, ...] = (1, 2.5, 5)) -> tuple[float, ...]:
    """`steps` times each power of ten within [low, high]."""
    bounds = []
    decade = 10.0**-4
    while decade <= high:
        bounds += [round(step * decade, 10) for step in steps if low <= step * decade <= high]
        decade *= 10
    return tuple(bounds)


TOKEN_BOUNDS = _ladder(1, 1_000_000, (1, 2, 5))
SECOND_BOUNDS = (
    0.05,
    0.1,
    0.2,
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
)
# A fast GPU makes a token in 2 to 8 ms: buckets that begin at 10 ms would not see it get twice as slow.
GAP_BOUNDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0),
)

# name -> (help, bounds)
HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "vllm:time_to_first_token_seconds": (
        "From the request's arrival to its first token.",
        _ladder(0.001, 1000),
    ),
    "vllm:inter_token_latency_seconds": ("Between two tokens of one request.", GAP_BOUNDS),
    "vllm:request_time_per_output_token_seconds": ("Mean time between the tokens of a request.", GAP_BOUNDS),
    "vllm:e2e_request_latency_seconds": ("From the request's arrival to its last token.", SECOND_BOUNDS),
    "vllm:request_queue_time_seconds": (
        "From arrival at the engine to the first step.",
        _ladder(0.001, 1000),
    ),
    "vllm:request_prefill_time_seconds": ("From the first step to the first token.", _ladder(0.001, 1000)),
    "vllm:request_decode_time_seconds": ("From the first token to the last.", SECOND_BOUNDS),
    "vllm:request_inference_time_seconds": ("From the first step to the last token.", SECOND_BOUNDS),
    "vllm:request_prompt_tokens": ("Prompt tokens of a request.", TOKEN_BOUNDS),
    "vllm:request_generation_tokens": ("Tokens generated for a request.", TOKEN_BOUNDS),
    "vllm:iteration_tokens_total": ("Tokens computed in one step.", TOKEN_BOUNDS),
    "vllm:request_params_n": ("The parameter n.", (1, 2, 5, 10, 20, 50, 100)),
    "vllm:request_params_max_tokens": ("The parameter max_tokens.", TOKEN_BOUNDS),
    "shoal:step_duration_seconds": ("Duration of one step of the engine.", GAP_BOUNDS),
}


class Metrics(Collector):
    """One served model's metrics; the Listener of its EngineClient."""

    def __init__(self, model_name: str) -> None:
        self._labels = {"model_name": model_name, "engine": "0"}
        self._stats = Stats()
        self._ready: Ready | None = None
        self._histograms = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self._gaps = self._histograms["vllm:inter_token_latency_seconds"]
        self._first = self._histograms["vllm:time_to_first_token_seconds"]
        self._finished: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0, "error": 0})
        self._rejections: Counter[str] = Counter()
        self._responses: Counter[tuple[str, str]] = Counter()
        self._disconnects = 0
        self.stalled_s = 0.0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    # Recording

    def on_ready(self, ready: Ready) -> None:
        self._ready = ready

    def on_outputs(self, outputs: Outputs, now_s: float) -> None:
        self._stats = outputs.stats
        if outputs.stats.step_tokens:
            self._histograms["vllm:iteration_tokens_total"].observe(outputs.stats.step_tokens)
            self._histograms["shoal:step_duration_seconds"].observe(outputs.stats.step_seconds)

    def on_tokens(self, request: Open, count: int, now_s: float) -> None:
        if request.last_token_s:
            self._gaps.observe((now_s - request.last_token_s) / count, count)
        else:
            self._first.observe(now_s - request.generation.arrived_s)

    def on_finish(self, request: Open, reason: str, now_s: float) -> None:
        self._finished[reason] += 1
        if not request.tokens:
            return
        seen = {
            "vllm:e2e_request_latency_seconds": now_s - request.generation.arrived_s,
            "vllm:request_decode_time_seconds": request.last_token_s - request.first_token_s,
            "vllm:request_prompt_tokens": request.prompt_tokens,
            "vllm:request_generation_tokens": request.tokens,
            "vllm:request_params_max_tokens": request.max_tokens,
        }
        if request.tokens > 1:
            decode_s = request.last_token_s - request.first_token_s
            seen["vllm:request_time_per_output_token_seconds"] = decode_s / (request.tokens - 1)
        if request.started_s:
            seen["vllm:request_queue_time_seconds"] = request.started_s - request.submitted_s
            seen["vllm:request_prefill_time_seconds"] = request.first_token_s - request.started_s
            seen["vllm:request_inference_time_seconds"] = request.last_token_s - request.started_s
        for name, value in seen.items():
            self._histograms[name].observe(value)

    def on_admitted(self, n: int) -> None:
        self._histograms["vllm:request_params_n"].observe(n)

    def on_rejected(self, code: str) -> None:
        self._rejections[code] += 1

    def on_disconnect(self) -> None:
        self._disconnects += 1

    def on_response(self, route: str, status: int) -> None:
        self._responses[route, str(status)] += 1

    # Telling

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that the scraper accepts."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()
        for name, (text, _) in HISTOGRAMS.items():
            family = HistogramMetricFamily(name, text, labels=list(self._labels))
            family.add_metric(
                list(self._labels.values()), self._histograms[name].buckets(), self._histograms[name].total
            )
            yield family

    def _gauges(self) -> Iterator[Metric]:
        stats = self._stats
        yield self._gauge("vllm:num_requests_running", "Requests in the engine's batch.", stats.num_running)
        yield self._gauge(
            "vllm:num_requests_waiting", "Requests that wait for their first step.", stats.num_waiting
        )
        by_reason = self._family(
            GaugeMetricFamily, "vllm:num_requests_waiting_by_reason", "The same by reason.", "reason"
        )
        self._add(by_reason, stats.num_waiting, "capacity")
        self._add(by_reason, 0, "deferred")
        yield by_reason
        yield self._gauge(
            "vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", stats.kv_cache_usage
        )
        yield self._gauge(
            "shoal:num_waiting_tokens", "Prompt tokens that wait to be computed.", stats.num_waiting_tokens
        )
        yield self._gauge("shoal:stalled_seconds", "How long work has waited for a step.", self.stalled_s)
        if self._ready is not None:
            yield from self._constants(self._ready)

    def _constants(self, ready: Ready) -> Iterator[Metric]:
        layout = {"block_size": str(ready.block_tokens), "num_gpu_blocks": str(ready.num_blocks)}
        layout |= {"device": ready.device, "cache_dtype": ready.dtype}
        info = self._family(GaugeMetricFamily, "vllm:cache_config_info", "Layout of the KV cache.", *layout)
        self._add(info, 1, *layout.values())
        yield info
        phases = self._family(
            GaugeMetricFamily, "shoal:startup_phase_seconds", "Duration of loading, by phase.", "phase"
        )
        for phase, seconds in ready.load_seconds.items():
            self._add(phases, seconds, phase)
        yield phases

    def _counters(self) -> Iterator[Metric]:
        stats = self._stats
        for name, text, value in (
            (
                "vllm:prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
                stats.prefix_cache_queries,
            ),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
            ("vllm:num_preemptions", "Requests put back for want of KV cache.", stats.num_preemptions),
            ("vllm:prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens),
            (
                "vllm:prompt_tokens_cached",
                "Prompt tokens served from the prefix cache.",
                stats.prefix_cache_hits,
            ),
            ("vllm:generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("shoal:disconnect_aborts", "Requests stopped because their client left.", self._disconnects),
        ):
            family = self._family(CounterMetricFamily, name, text)
            self._add(family, value)
            yield family
        yield self._by(
            "vllm:request_success", "Requests ended, by reason.", "finished_reason", self._finished
        )
        yield self._by(
            "vllm:admission_rejections", "Requests refused for want of room.", "reason", self._rejections
        )
        responses = self._family(
            CounterMetricFamily, "shoal:http_responses", "HTTP responses.", "route", "status"
        )
        for (route, status), count in self._responses.items():
            self._add(responses, count, route, status)
        yield responses

    def _by(self, name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
        family = self._family(CounterMetricFamily, name, text, label)
        for value, count in counts.items():
            self._add(family, count, value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = self._family(GaugeMetricFamily, name, text)
        self._add(family, value)
        return family

    def _family(self, kind: type[Family], name: str, text: str, *labels: str) -> Family:
        return kind(name, text, labels=[*self._labels, *labels])

    def _add(self, family: GaugeMetricFamily | CounterMetricFamily, value: float, *labels: str) -> None:
        family.add_metric([*self._labels.values(), *labels], value)
