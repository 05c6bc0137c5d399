"""The torch twin of every kernel: plain, correct on any device, and the oracle of the fast ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout, Kernels

FLOAT8_MAX = torch.finfo(torch.float8_e4m3fn).max


class ReferenceKernels(Kernels):
    """Implements `interface.Kernels` with torch operations only."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        return (x32 * scale * weight.float()).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        residual.add_(x)
        return self.rms_norm(residual, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def rotate_and_store(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        rope_table: Tensor,
        batch: AttentionBatch,
        cache: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
    ) -> Tensor:
        tokens = qkv.shape[0]
        q, k, v = torch.split(qkv, [layout.q_size, layout.kv_size, layout.kv_size], dim=-1)
        q = q.reshape(tokens, layout.num_heads, layout.head_dim)
        k = k.reshape(tokens, layout.num_kv_heads, layout.head_dim)
        v = v.reshape(tokens, layout.num_kv_heads, layout.head_dim)
        if q_norm is not None and k_norm is not None:
            q, k = self.rms_norm(q, q_norm, eps), self.rms_norm(k, k_norm, eps)
        angles = rope_table[batch.positions].unsqueeze(1)
        q, k = _rotate(q, angles), _rotate(k, angles)
        real = batch.slots >= 0
        slots = batch.slots[real]
        block, offset = slots // batch.block_tokens, slots % batch.block_tokens
        _as_stored(cache)[block, 0, :, offset] = _rounded(k[real], cache.dtype)
        _as_stored(cache)[block, 1, :, offset] = _rounded(v[real], cache.dtype)
        return q

    def attend(
        self, q: Tensor, layout: HeadLayout, batch: AttentionBatch, cache: Tensor, scale: AttentionScale
    ) -> Tensor:
        out = torch.empty(q.shape[0], layout.q_size, dtype=q.dtype, device=q.device)
        starts, lengths = batch.query_start.tolist(), batch.context_lens.tolist()
        for request, context_len in enumerate(lengths):
            rows = slice(starts[request], starts[request + 1])
            keys, values = _gather(cache, batch.tables[request], context_len, batch.block_tokens)
            out[rows] = _attend_one(q[rows], keys, values, layout, context_len, scale)
        return out


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """x [T, heads, D]; angles [T, 1, D] = cos then sin."""
    cos, sin = angles.chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _as_stored(cache: Tensor) -> Tensor:
    """torch indexes no float8: its bytes."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as a cache of `dtype` holds it; what float8 cannot hold becomes its largest number."""
    if dtype != torch.float8_e4m3fn:
        return x.to(dtype)
    return x.float().clamp(-FLOAT8_MAX, FLOAT8_MAX).to(dtype).view(torch.uint8)


def _gather(cache: Tensor, table: Tensor, context_len: int, block_tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values [num_kv_heads, context_len, D] of one request."""
    num_blocks = -(-context_len // block_tokens)
    blocks = _as_stored(cache)[table[:num_blocks].long()].view(
        cache.dtype
    )  # [blocks, 2, kv_heads, block_tokens, D]
    both = blocks.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :context_len]
    return both[0], both[1]


def _attend_one(
    q: Tensor, keys: Tensor, values: Tensor, layout: HeadLayout, context_len: int, scale: AttentionScale
) -> Tensor:
    """q [Q, num_heads, D] are the last Q of context_len tokens; returns [Q, num_heads * D]."""
    queries = q.shape[0]
    group = layout.num_heads // layout.num_kv_heads
    q32 = q.float().transpose(0, 1).reshape(layout.num_kv_heads, group * queries, layout.head_dim)
    scores = (q32 @ keys.float().transpose(1, 2)) * scale.scale
    if scale.softcap is not None:
        scores = scale.softcap * torch.tanh(scores / scale.softcap)
    scores = scores.view(layout.num_kv_heads, group, queries, context_len)
    query_position = torch.arange(context_len - queries, context_len, device=q.device).unsqueeze(1)
    key_position = torch.arange(context_len, device=q.device).unsqueeze(0)
    hidden = key_position > query_position
    if scale.window is not None:
        hidden = hidden | (key_position <= query_position - scale.window)
    scores = scores.masked_fill(hidden, float("-inf"))
    if scale.sinks is not None:
        sinks = scale.sinks.float().view(layout.num_kv_heads, group, 1, 1).expand(-1, -1, queries, 1)
        scores = torch.cat((scores, sinks), dim=-1)
    weights = scores.softmax(-1)[..., :context_len]
    out = weights.view(layout.num_kv_heads, group * queries, context_len) @ values.float()
    return (
        out.view(layout.num_heads, queries, layout.head_dim).transpose(0, 1).reshape(queries, -1).to(q.dtype)
    )
