"""The least time a card of measured ceilings needs for a workload. Arithmetic alone: knows no engine, imports no torch.

    python benchmarks/h200/roofline.py              # the selftest

A decode step reads every weight (the embedding is a gather) and all keys and values, and multiplies; the linear part
and attention follow one another in each layer, so a step is max(weights/BW, flops/F) + max(KV/BW, flops/F).
Prefill multiplies; causal attention is half a square. Floors of a decode step take the read-only bandwidth, those of
whole runs the copy bandwidth, as design/numbers.md does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shapes import LLAMA31_8B, QWEN3_06B, Shape


@dataclass(frozen=True)
class Ceilings:
    """Of one card, measured; bytes and FLOP per second."""

    read: float = 4.67e12
    copy: float = 4.28e12
    bf16: float = 789e12
    fp8: float = 1445e12


@dataclass(frozen=True)
class Cost:
    """What one model asks of a card; `weight_bytes` and `kv_bytes` are bytes of one linear weight and one cached number.

    The LM head stays in 16 bits, and attention multiplies in bf16 whatever the cache's type.
    """

    shape: Shape
    weight_bytes: int = 2
    kv_bytes: int = 2

    def _size(self, name: str) -> int:
        value: Any = self.shape.config[name]
        return int(value)

    @property
    def linear_params(self) -> int:
        """Parameters of all layers' products, the LM head apart."""
        hidden, head_dim = self._size("hidden_size"), self._size("head_dim")
        query, kv = self._size("num_attention_heads") * head_dim, self._size("num_key_value_heads") * head_dim
        layer = hidden * (2 * query + 2 * kv) + 3 * hidden * self._size("intermediate_size")
        return layer * self._size("num_hidden_layers")

    @property
    def head_params(self) -> int:
        return self._size("vocab_size") * self._size("hidden_size")

    @property
    def step_bytes(self) -> int:
        """Weights that one step reads."""
        return self.linear_params * self.weight_bytes + self.head_params * 2

    @property
    def token_kv_bytes(self) -> int:
        layers, heads = self._size("num_hidden_layers"), self._size("num_key_value_heads")
        return 2 * layers * heads * self._size("head_dim") * self.kv_bytes

    @property
    def pair_flops(self) -> int:
        """FLOPs of one query with one key, over the whole model."""
        return (
            4 * self._size("num_hidden_layers") * self._size("num_attention_heads") * self._size("head_dim")
        )

    def linear_flops_rate(self, chip: Ceilings) -> float:
        return chip.fp8 if self.weight_bytes == 1 else chip.bf16

    def decode_s(
        self, chip: Ceilings, bandwidth: float, batch: int, context: float, shared: int = 0
    ) -> float:
        """One step of `batch` requests with `context` tokens each, the new one not counted.

        The first `shared` tokens of all contexts are the same and are read once.
        """
        multiplies = 2 * batch * self.linear_params / self.linear_flops_rate(chip)
        multiplies += 2 * batch * self.head_params / chip.bf16
        kv_bytes = (batch * (context + 1) - (batch - 1) * shared) * self.token_kv_bytes
        attention = batch * context * self.pair_flops / chip.bf16
        return max(self.step_bytes / bandwidth, multiplies) + max(kv_bytes / bandwidth, attention)

    def prefill_s(self, chip: Ceilings, tokens: int, cached: int = 0) -> float:
        """A prompt's `tokens` after `cached` ones that another prompt has computed, its first token sampled."""
        linear = 2 * tokens * self.linear_params / self.linear_flops_rate(chip)
        pairs = tokens * (cached + tokens / 2)
        return linear + 2 * self.head_params / chip.bf16 + self.pair_flops * pairs / chip.bf16

    def run_s(self, chip: Ceilings, requests: Iterable[tuple[int, int]], cached: int = 0) -> float:
        """All of `requests` (prompt, output tokens) at once: every prompt, then every step with whoever still runs.

        The first token is the prompt's; `cached` tokens of each prompt but the first were computed before. Serial:
        an engine that hides reading behind multiplying can beat it.
        """
        asked = list(requests)
        prompts_s = sum(
            self.prefill_s(chip, prompt - (cached if i else 0), cached if i else 0)
            for i, (prompt, _) in enumerate(asked)
        )
        steps_s = 0.0
        for step in range(1, max(output for _, output in asked)):
            contexts = [prompt + step for prompt, output in asked if output > step]
            mean = sum(contexts) / len(contexts)
            steps_s += self.decode_s(chip, chip.copy, len(contexts), mean, cached)
        return prompts_s + steps_s


def output_rate(cost: Cost, chip: Ceilings, requests: Sequence[tuple[int, int]], cached: int = 0) -> float:
    """Output tokens per second at the floor."""
    return sum(output for _, output in requests) / cost.run_s(chip, requests, cached)


def selftest() -> None:
    """Against parameter counts as published, and the floors that design/numbers.md states."""
    chip = Ceilings()
    small, large = Cost(QWEN3_06B), Cost(LLAMA31_8B)
    assert abs((large.linear_params + 2 * large.head_params) / 1e9 - 8.03) < 0.01
    assert abs((small.linear_params + small.head_params) / 1e9 - 0.596) < 0.002
    assert (large.token_kv_bytes, small.token_kv_bytes) == (128 << 10, 112 << 10)
    for cost, floors_ms in ((small, (0.27, 0.37, 0.71, 2.06, 3.97)), (large, (3.22, 3.33, 3.71, 5.27, 8.9))):
        for batch, floor_ms in zip((1, 8, 32, 128, 256), floors_ms, strict=True):
            ours_ms = cost.decode_s(chip, chip.read, batch, 577) * 1e3
            assert abs(ours_ms / floor_ms - 1) < 0.015, (cost.shape.name, batch, ours_ms)
        many, few = [(1024, 256)] * 512, [(1024, 256)] * 64
        assert output_rate(cost, chip, many) > output_rate(cost, chip, few)
        assert output_rate(cost, chip, [(2176, 128)] * 64, cached=2048) > output_rate(
            cost, chip, [(2176, 128)] * 64
        )
    assert abs(8192 / small.prefill_s(chip, 8192) / 434_000 - 1) < 0.01
    assert abs(8192 / large.prefill_s(chip, 8192) / 49_000 - 1) < 0.01
    assert abs(output_rate(large, chip, [(1024, 256)] * 512) / 7_925 - 1) < 0.02
    assert abs(output_rate(small, chip, [(1024, 256)] * 512) / 26_800 - 1) < 0.02
    halved = Cost(LLAMA31_8B, 1, 1)
    assert abs(halved.decode_s(chip, chip.copy, 1, 577) * 1e3 / 1.88 - 1) < 0.01
    assert abs(output_rate(halved, chip, [(1024, 512)] * 1000) / 19_700 - 1) < 0.01
    print("selftest ok")


if __name__ == "__main__":
    selftest()
