"""The text behind /metrics: names, labels and format of what metrics.py has counted. Made when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from shoal_api import names
from shoal_engine.messages import Ready, StepCost
from shoal_engine.server.metrics import HISTOGRAMS, Metrics

Kind = type[GaugeMetricFamily] | type[CounterMetricFamily]
Sample = tuple[tuple[str, ...], float]  # label values and the value


def _step_cost(cost: StepCost | None) -> Iterator[tuple[str, str, float]]:
    """What a step costs, once that is known."""
    if cost is not None:
        yield "shoal:step_base_seconds", "Time of a step beside its tokens.", cost.base_s
        yield (
            "shoal:step_prefill_token_seconds",
            "Time of a step for each prompt token.",
            cost.prefill_token_s,
        )
        yield "shoal:step_sequence_seconds", "Time of a step for each decoding sequence.", cost.sequence_s


class Exposition(Collector):
    """vLLM's names and labels for what vLLM measures, so that its dashboards and routers work."""

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self._metrics = metrics
        self._labels = {"model_name": model_name, "engine": "0"}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that the scraper accepts."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        if self._metrics.ready is not None:
            yield from self._constants(self._metrics.ready)
        yield from self._engine_counters()
        yield from self._counters()
        for name, (text, _) in HISTOGRAMS.items():
            histogram = self._metrics.histograms[name]
            family = HistogramMetricFamily(name, text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), histogram.buckets(), histogram.total)
            yield family

    def _gauges(self) -> Iterator[Metric]:
        stats = self._metrics.stats
        for name, text, value in (
            (names.METRIC_RUNNING, "Requests in the engine's batch.", stats.num_running),
            (names.METRIC_WAITING, "Requests that wait for their first step.", stats.num_waiting),
            (names.METRIC_KV_USAGE, "Share of the KV cache in use, 0 to 1.", stats.kv_cache_usage),
            ("shoal:num_waiting_tokens", "Prompt tokens that wait to be computed.", stats.num_waiting_tokens),
            (
                "shoal:queued_prefill_tokens",
                "Prompt tokens still to be computed.",
                stats.queued_prefill_tokens,
            ),
            ("shoal:stalled_seconds", "How long work has waited for a step.", self._metrics.stalled_s),
            ("shoal:prefix_tags", "Routers' prefix hashes that the cache holds.", self._metrics.prefix_tags),
            (names.METRIC_GRPC_PORT, "Port of the pushed state; 0: none.", self._metrics.grpc_port),
            *_step_cost(stats.step_cost),
        ):
            yield self._family(GaugeMetricFamily, name, text, (), [((), value)])
        reasons: list[Sample] = [(("capacity",), stats.num_waiting), (("deferred",), 0)]
        text = "Requests that wait, by reason."
        yield self._family(GaugeMetricFamily, f"{names.METRIC_WAITING}_by_reason", text, ("reason",), reasons)

    def _constants(self, ready: Ready) -> Iterator[Metric]:
        layout = {"block_size": str(ready.block_tokens), "num_gpu_blocks": str(ready.num_blocks)}
        layout |= {"device": ready.device, "cache_dtype": ready.dtype}
        yield self._family(
            GaugeMetricFamily,
            "vllm:cache_config_info",
            "Layout of the KV cache.",
            tuple(layout),
            [(tuple(layout.values()), 1)],
        )
        for name, text, value in (
            (names.METRIC_MAX_NUM_SEQS, "Requests computed in one step at most.", ready.max_num_seqs),
            (names.METRIC_MAX_REQUESTS, "Requests, waiting ones too, above which 429.", ready.max_requests),
        ):
            yield self._family(GaugeMetricFamily, name, text, (), [((), value)])
        yield self._family(
            GaugeMetricFamily,
            "shoal:startup_phase_seconds",
            "Duration of loading, by phase.",
            ("phase",),
            [((phase,), seconds) for phase, seconds in ready.load_seconds.items()],
        )

    def _engine_counters(self) -> Iterator[Metric]:
        stats = self._metrics.stats
        hits = stats.prefix_cache_hits
        for name, text, value in (
            (
                names.METRIC_PREFIX_QUERIES,
                "Prompt tokens looked up in the cache.",
                stats.prefix_cache_queries,
            ),
            (names.METRIC_PREFIX_HITS, "Prompt tokens found in the cache.", hits),
            ("vllm:prompt_tokens_cached", "Prompt tokens served from the prefix cache.", hits),
            ("vllm:num_preemptions", "Requests put back for want of KV cache.", stats.num_preemptions),
            ("vllm:prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens),
            ("vllm:generation_tokens", "Tokens generated.", stats.generation_tokens),
        ):
            yield self._family(CounterMetricFamily, name, text, (), [((), value)])

    def _counters(self) -> Iterator[Metric]:
        counts = self._metrics
        finished: list[Sample] = [((reason,), count) for reason, count in counts.finished.items()]
        refused: list[Sample] = [((code,), count) for code, count in counts.rejections.items()]
        replies: list[Sample] = [((route, str(status)), n) for (route, status), n in counts.responses.items()]
        tables: tuple[tuple[str, str, tuple[str, ...], list[Sample]], ...] = (
            ("vllm:request_success", "Requests ended, by reason.", ("finished_reason",), finished),
            ("vllm:admission_rejections", "Requests refused, by error code.", ("reason",), refused),
            ("shoal:http_responses", "HTTP responses.", ("route", "status"), replies),
            ("shoal:disconnect_aborts", "Requests whose client left.", (), [((), counts.disconnects)]),
            ("shoal:requests_resumed", "Streams begun by other engines.", (), [((), counts.resumed)]),
        )
        for name, text, labels, samples in tables:
            yield self._family(CounterMetricFamily, name, text, labels, samples)

    def _family(
        self, kind: Kind, name: str, text: str, labels: tuple[str, ...], samples: Iterable[Sample]
    ) -> Metric:
        family = kind(name, text, labels=[*self._labels, *labels])
        for own, value in samples:
            family.add_metric([*self._labels.values(), *own], value)
        return family
