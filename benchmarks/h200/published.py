"""Figures of vLLM 0.22.1 on one H200 and the goals set from them (design/numbers.md section 1). Data alone.

torch 2.11, FlashAttention 3, torch.compile, full CUDA graphs, its defaults, random weights, temperature 0.6, end of
sequence ignored; measured 2026-11-23. Two runs of it differed by 1 to 5 %.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """vLLM's figure and our goal, in the figure's unit; None = not stated."""

    vllm: float | None = None
    goal: float | None = None


NOTHING = Published()
# By model, whether in FP8, and name of the figure.
PUBLISHED: dict[tuple[str, bool], dict[str, Published]] = {
    ("Qwen3-0.6B", False): {
        "A": Published(23_436, 30_000),
        "B": Published(20_040, 25_000),
        "C batch 1": Published(1.648, 0.58),
        "C batch 8": Published(1.623, 0.80),
        "C batch 32": Published(2.161, 1.20),
        "C batch 128": Published(4.305, 2.8),
        "C batch 256": Published(7.099, 5.1),
        "D": Published(17_916, 24_000),
        "E": Published(267_744, 360_000),
        "ttft": Published(5.8, 3.0),
        "start cold": Published(56.2, 10.0),
    },
    ("Llama-3.1-8B", False): {
        "A": Published(9_554, 11_500),
        "B": Published(6_228, 7_500),
        "C batch 1": Published(4.919, 3.8),
        "C batch 8": Published(5.133, 4.1),
        "C batch 32": Published(5.824, 4.6),
        "C batch 128": Published(8.703, 6.7),
        "C batch 256": Published(14.077, 11.0),
        "D": Published(9_539, 12_000),
        "E": Published(38_318, 42_000),
        "ttft": Published(15.5, 13.0),
        "start cold": Published(47.7),
        "offline": Published(7_240),
    },
    ("Llama-3.1-8B", True): {
        "A": Published(11_745, 17_000),
        "B": Published(8_943, 12_500),
        "C batch 1": Published(3.62, 2.4),
        "C batch 8": Published(3.85, 2.7),
        "C batch 32": Published(4.90, 3.3),
        "C batch 128": Published(6.99, 5.0),
        "C batch 256": Published(11.22, 8.5),
        "D": Published(11_358),
        "E": Published(55_892, 68_000),
        "start cold": Published(74.0),
        "offline": Published(11_873, 16_000),
    },
}


def published(model: str, fp8: bool, figure: str) -> Published:
    return PUBLISHED.get((model, fp8), {}).get(figure, NOTHING)
