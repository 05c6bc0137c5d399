from __future__ import annotations

import pytest

from shoal_engine.messages import Outputs, Ready, Stats
from shoal_engine.server.exposition import Exposition
from shoal_engine.server.generation import Generation
from shoal_engine.server.histogram import Histogram
from shoal_engine.server.metrics import GAP_BOUNDS, HISTOGRAMS, Metrics
from shoal_engine.server.open_requests import Open


def test_a_histogram_is_cumulative_and_a_bound_includes_itself() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.0)
    histogram.observe(1.5, 3)
    histogram.observe(9.0)
    assert histogram.buckets() == [("1.0", 1.0), ("2.0", 4.0), ("+Inf", 5.0)]
    assert histogram.total == 1.0 + 4.5 + 9.0


def test_the_gap_between_tokens_is_resolved_where_fast_gpus_are() -> None:
    assert GAP_BOUNDS[0] == 0.0005
    assert sum(0.002 <= bound <= 0.008 for bound in GAP_BOUNDS) >= 5


def test_every_histograms_bounds_rise() -> None:
    for name, (_, bounds) in HISTOGRAMS.items():
        assert list(bounds) == sorted(set(bounds)), name


@pytest.fixture
def text() -> str:
    """An exposition after one request of three tokens, one that was refused, one whose client left."""
    metrics = Metrics()
    metrics.on_ready(
        Ready(2048, 128, 16, 49152, "cpu", "float32", {"weights": 1.5}, max_requests=544, max_num_seqs=32)
    )
    request = Open(
        Generation(arrived_s=10.0), 0, prompt_tokens=7, max_tokens=16, submitted_s=10.1, started_s=10.2
    )
    for now_s in (11.0, 11.004, 11.010):
        metrics.on_tokens(request, 1, now_s)
        request.first_token_s = request.first_token_s or now_s
        request.last_token_s = now_s
        request.tokens += 1
    metrics.on_finish(request, "stop", 11.010)
    metrics.on_rejected("queue_full")
    metrics.on_disconnect()
    metrics.on_response("/v1/completions", 429)
    stats = Stats(2, 3, 400, 0.25, 100, 60, 1, 107, 53, step_seconds=0.004, step_tokens=5)
    metrics.on_outputs(Outputs([], stats), 12.0)
    body, content_type = Exposition(metrics, "m").render("")
    assert content_type.startswith("text/plain")
    return body.decode()


@pytest.mark.parametrize(
    "line",
    [
        'vllm:num_requests_running{engine="0",model_name="m"} 2.0',
        'vllm:num_requests_waiting{engine="0",model_name="m"} 3.0',
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 3.0',
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25',
        'shoal:max_num_seqs{engine="0",model_name="m"} 32.0',
        'shoal:max_requests{engine="0",model_name="m"} 544.0',
        'vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0',
        'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 60.0',
        'vllm:num_preemptions_total{engine="0",model_name="m"} 1.0',
        'vllm:prompt_tokens_total{engine="0",model_name="m"} 107.0',
        'vllm:generation_tokens_total{engine="0",model_name="m"} 53.0',
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 1.0',
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 0.0',
        'vllm:admission_rejections_total{engine="0",model_name="m",reason="queue_full"} 1.0',
        'vllm:time_to_first_token_seconds_bucket{engine="0",le="1.0",model_name="m"} 1.0',
        'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 0.0',
        'vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 2.0',
        'vllm:inter_token_latency_seconds_bucket{engine="0",le="0.003",model_name="m"} 0.0',
        'vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="m"} 2.0',
        'vllm:e2e_request_latency_seconds_bucket{engine="0",le="1.5",model_name="m"} 1.0',
        'vllm:request_queue_time_seconds_bucket{engine="0",le="0.25",model_name="m"} 1.0',
        'vllm:request_prefill_time_seconds_bucket{engine="0",le="1.0",model_name="m"} 1.0',
        'vllm:request_prompt_tokens_sum{engine="0",model_name="m"} 7.0',
        'vllm:request_generation_tokens_sum{engine="0",model_name="m"} 3.0',
        'vllm:iteration_tokens_total_sum{engine="0",model_name="m"} 5.0',
        'shoal:step_duration_seconds_count{engine="0",model_name="m"} 1.0',
        'shoal:startup_phase_seconds{engine="0",model_name="m",phase="weights"} 1.5',
        'shoal:disconnect_aborts_total{engine="0",model_name="m"} 1.0',
        'shoal:http_responses_total{engine="0",model_name="m",route="/v1/completions",status="429"} 1.0',
    ],
)
def test_the_exposition_says_it_in_vllms_words(line: str, text: str) -> None:
    assert line in text.splitlines()


def test_the_cache_layout_is_there_for_endpoint_pickers(text: str) -> None:
    info = next(line for line in text.splitlines() if line.startswith("vllm:cache_config_info{"))
    assert 'block_size="16"' in info
    assert 'num_gpu_blocks="128"' in info
