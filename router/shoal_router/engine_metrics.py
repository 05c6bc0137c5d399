"""What an engine's /metrics says of its load, cache and size. Pure: health.py fetches it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from shoal_api import names
from shoal_router.endpoints import Report


def _gauge(name: str) -> re.Pattern[bytes]:
    return re.compile(rb"^%b(?:\{[^}]*\})? (\S+)" % name.encode(), re.MULTILINE)


_RUNNING: Final = _gauge(names.METRIC_RUNNING)
_WAITING: Final = _gauge(names.METRIC_WAITING)
_KV_USAGE: Final = _gauge(names.METRIC_KV_USAGE)
_MAX_NUM_SEQS: Final = _gauge(names.METRIC_MAX_NUM_SEQS)
_MAX_REQUESTS: Final = _gauge(names.METRIC_MAX_REQUESTS)
_GRPC_PORT: Final = _gauge(names.METRIC_GRPC_PORT)
_STARTED: Final = _gauge("process_start_time_seconds")
_CACHE: Final = re.compile(rb"^vllm:cache_config_info\{([^}]*)\}", re.MULTILINE)
_BLOCKS: Final = re.compile(rb'num_gpu_blocks="(\d+)"')
_BLOCK_SIZE: Final = re.compile(rb'block_size="(\d+)"')


def read_metrics(text: bytes, before: Report) -> Report:
    """`before` with what /metrics says; sizes that it does not say stay. Raises ValueError for no number."""
    kv_tokens = 0
    for labels in _CACHE.findall(text):
        blocks, size = _BLOCKS.search(labels), _BLOCK_SIZE.search(labels)
        if blocks and size:
            kv_tokens += int(blocks[1]) * int(size[1])
    usage = [float(value) for value in _KV_USAGE.findall(text)]
    started = [float(value) for value in _STARTED.findall(text)]
    # Several engines behind one address push at ports of their own: there is no one cache to be exact about.
    ports = {round(float(value)) for value in _GRPC_PORT.findall(text)}
    return replace(
        before,
        running=_sum(_RUNNING, text),
        waiting=_sum(_WAITING, text),
        kv_usage=max(usage, default=0.0),
        kv_tokens=kv_tokens or before.kv_tokens,
        max_num_seqs=_sum(_MAX_NUM_SEQS, text) or before.max_num_seqs,
        max_requests=_sum(_MAX_REQUESTS, text) or before.max_requests,
        started_at_s=started[0] if started else before.started_at_s,
        grpc_port=ports.pop() if len(ports) == 1 else 0,
    )


def _sum(pattern: re.Pattern[bytes], text: bytes) -> int:
    """Several engines may answer behind one address."""
    return round(sum(float(value) for value in pattern.findall(text)))
