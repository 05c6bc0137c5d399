"""What the API process counts. Recording is a few additions per step and request; exposition.py tells it.

Histograms carry vLLM's names for what vLLM measures, so that its dashboards work; shoal:* beside them.
"""

from __future__ import annotations

from collections import Counter

from shoal_engine.messages import Outputs, Ready, Stats
from shoal_engine.server.histogram import Histogram
from shoal_engine.server.open_requests import Open


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


class Metrics:
    """One served model's counts; the Listener of its EngineClient. For one thread."""

    def __init__(self) -> None:
        self.stats = Stats()  # the engine's own, as of its last report
        self.ready: Ready | None = None
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self.finished = Counter({"stop": 0, "length": 0, "abort": 0, "error": 0})
        self.rejections: Counter[str] = Counter()  # by error code
        self.responses: Counter[tuple[str, int]] = Counter()  # by route and status
        self.disconnects = 0
        self.resumed = 0
        self.stalled_s = 0.0
        self.grpc_port = 0  # where the engine's state is pushed; 0: nowhere
        self.prefix_tags = 0
        self._gaps = self.histograms["vllm:inter_token_latency_seconds"]
        self._first = self.histograms["vllm:time_to_first_token_seconds"]

    def on_ready(self, ready: Ready) -> None:
        self.ready = ready

    def on_outputs(self, outputs: Outputs, now_s: float) -> None:
        self.stats = outputs.stats
        if outputs.stats.step_tokens:
            self.histograms["vllm:iteration_tokens_total"].observe(outputs.stats.step_tokens)
            self.histograms["shoal:step_duration_seconds"].observe(outputs.stats.step_seconds)

    def on_tokens(self, request: Open, count: int, now_s: float) -> None:
        if request.last_token_s:
            self._gaps.observe((now_s - request.last_token_s) / count, count)
        else:
            self._first.observe(now_s - request.generation.arrived_s)

    def on_finish(self, request: Open, reason: str, now_s: float) -> None:
        self.finished[reason] += 1
        if not request.tokens:
            return
        decode_s = request.last_token_s - request.first_token_s
        seen = {
            "vllm:e2e_request_latency_seconds": now_s - request.generation.arrived_s,
            "vllm:request_decode_time_seconds": decode_s,
            "vllm:request_prompt_tokens": request.prompt_tokens,
            "vllm:request_generation_tokens": request.given_tokens + request.tokens,
            "vllm:request_params_max_tokens": request.max_tokens,
        }
        if request.tokens > 1:
            seen["vllm:request_time_per_output_token_seconds"] = decode_s / (request.tokens - 1)
        if request.started_s:
            seen["vllm:request_queue_time_seconds"] = request.started_s - request.submitted_s
            seen["vllm:request_prefill_time_seconds"] = request.first_token_s - request.started_s
            seen["vllm:request_inference_time_seconds"] = request.last_token_s - request.started_s
        for name, value in seen.items():
            self.histograms[name].observe(value)

    def on_admitted(self, n: int) -> None:
        self.histograms["vllm:request_params_n"].observe(n)

    def on_resumed(self) -> None:
        """Another engine has counted it as admitted."""
        self.resumed += 1

    def on_rejected(self, code: str) -> None:
        self.rejections[code] += 1

    def on_disconnect(self) -> None:
        self.disconnects += 1

    def on_response(self, route: str, status: int) -> None:
        self.responses[route, status] += 1
