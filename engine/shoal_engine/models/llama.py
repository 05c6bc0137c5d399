"""The pre-norm decoder that Llama 3, Mistral, Qwen2 and Qwen3 share.

- grouped-query attention with rotary positions; Qwen2 adds q/k/v biases, Qwen3 normalises each q and k head
- gated SiLU feed-forward, RMSNorm before both, residual stream carried in the model's dtype
- the output matrix may be the embedding itself (tied)
"""

from __future__ import annotations

from torch import Tensor

from shoal_engine.config import ModelConfig
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadInput, HeadLayout, Kernels
from shoal_engine.layers.addend import Addend
from shoal_engine.layers.attention import Attention
from shoal_engine.layers.mlp import GatedMLP
from shoal_engine.layers.norm import RMSNorm
from shoal_engine.layers.rotary import rope_table
from shoal_engine.weights import ModelWeights


class Block:
    """One layer: attention, then feed-forward, each on the normalised residual."""

    def __init__(self, input_norm: RMSNorm, attention: Attention, post_norm: RMSNorm, mlp: GatedMLP) -> None:
        self.input_norm = input_norm
        self.attention = attention
        self.post_norm = post_norm
        self.mlp = mlp

    def __call__(self, x: Addend, residual: Tensor, batch: AttentionBatch, cache: Tensor) -> Addend:
        """x [T, H] is what the layer before added; returns what this one adds. `residual` is updated in place."""
        x = self.attention(x, residual, self.input_norm, batch, cache)
        return self.mlp(x, residual, self.post_norm)


class Llama:
    def __init__(
        self, config: ModelConfig, weights: ModelWeights, kernels: Kernels, max_positions: int
    ) -> None:
        self.config = config
        hidden = config.hidden_size
        self.embedding = weights.take("model.embed_tokens.weight", config.vocab_size, hidden)
        rope = rope_table(config.rope, config.head_dim, max_positions).to(self.embedding.device)
        self.blocks = [
            _block(config, weights, kernels, rope, f"model.layers.{layer}", layer)
            for layer in range(config.num_layers)
        ]
        self.norm = RMSNorm(weights.take("model.norm.weight", hidden), config.norm_eps, kernels)
        head = "model.embed_tokens" if config.tie_embeddings else "lm_head"
        self.lm_head = weights.linear([head], hidden, [config.vocab_size])

    def __call__(self, token_ids: Tensor, batch: AttentionBatch, cache: Tensor) -> Tensor:
        """token_ids [T] int64; cache [layers, num_blocks, 2, kv_heads, block_tokens, D] -> hidden [T, H], normalised."""
        embedded = self.embedding[token_ids]
        x: Addend = embedded
        residual = embedded.new_zeros(embedded.shape)
        for block, layer_cache in zip(self.blocks, cache.unbind(0), strict=True):
            x = block(x, residual, batch, layer_cache)
        return self.norm.add(x, residual)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [S, H] -> [S, vocab]."""
        return self.lm_head(hidden)


def _block(
    config: ModelConfig, weights: ModelWeights, kernels: Kernels, rope: Tensor, name: str, layer: int
) -> Block:
    hidden, eps = config.hidden_size, config.norm_eps
    return Block(
        RMSNorm(weights.take(f"{name}.input_layernorm.weight", hidden), eps, kernels),
        _attention(config, weights, kernels, rope, f"{name}.self_attn", layer),
        RMSNorm(weights.take(f"{name}.post_attention_layernorm.weight", hidden), eps, kernels),
        GatedMLP(
            weights.linear(
                [f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"],
                hidden,
                [config.intermediate_size] * 2,
                bias=config.mlp_bias,
            ),
            weights.linear(
                [f"{name}.mlp.down_proj"], config.intermediate_size, [hidden], bias=config.mlp_bias
            ),
            kernels,
        ),
    )


def _attention(
    config: ModelConfig, weights: ModelWeights, kernels: Kernels, rope: Tensor, name: str, layer: int
) -> Attention:
    layout = HeadLayout(config.num_heads, config.num_kv_heads, config.head_dim)
    return Attention(
        weights.linear(
            [f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj"],
            config.hidden_size,
            [layout.q_size, layout.kv_size, layout.kv_size],
            bias=config.qkv_bias,
        ),
        weights.linear([f"{name}.o_proj"], layout.q_size, [config.hidden_size], bias=config.output_bias),
        layout,
        AttentionScale(config.head_dim**-0.5, config.window(layer)),
        HeadInput(
            rope,
            weights.take(f"{name}.q_norm.weight", config.head_dim) if config.qk_norm else None,
            weights.take(f"{name}.k_norm.weight", config.head_dim) if config.qk_norm else None,
            config.norm_eps,
        ),
        kernels,
    )
