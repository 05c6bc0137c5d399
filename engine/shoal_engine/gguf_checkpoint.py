"""A GGUF file's tensors under Hugging Face names, in Hugging Face row order, dequantised when asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from shoal_engine.errors import ModelLoadError
from shoal_engine.gguf import open_gguf
from shoal_engine.gguf_config import gguf_config
from shoal_engine.gguf_head import StoredTensor
from shoal_engine.quantization.block_types import BlockType
from shoal_engine.quantization.gguf import PLAIN_DTYPES, SUPPORTED, dequantize

_MODEL_PARTS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NOT_WEIGHTS = frozenset({"rope_freqs.weight"})  # part of the config
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


def huggingface_name(name: str) -> str | None:
    """`blk.3.attn_q.bias` -> `model.layers.3.self_attn.q_proj.bias`; None for what no such model has."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    layer, part, kind = match.groups()
    parts = _MODEL_PARTS if layer is None else _LAYER_PARTS
    if part not in parts:
        return None
    prefix = "" if layer is None else f"model.layers.{layer}."
    return f"{prefix}{parts[part]}.{kind}"


class GgufCheckpoint:
    """See `checkpoint.Checkpoint`. `raw` gives the blocks themselves, for layouts that stay quantised."""

    def __init__(self, path: Path) -> None:
        self._path = path
        gguf = open_gguf(path)
        self.config = gguf_config(gguf)
        # llama.cpp rotates neighbouring pairs in its llama graph alone; its converter reorders rows to suit.
        self._pairs_rotated = gguf.metadata["general.architecture"] == "llama"
        weights = (tensor for name, tensor in gguf.tensors.items() if name not in _NOT_WEIGHTS)
        self._tensors = {self._renamed(tensor.name): tensor for tensor in weights}
        self._refuse_unsupported()
        self.total_bytes = sum(tensor.data.nbytes for tensor in self._tensors.values())

    def names(self) -> Sequence[str]:
        return tuple(self._tensors)

    def stored_bytes(self, name: str) -> int:
        return self._stored(name).data.nbytes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored(name).shape

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        block_type, rows, shape = self.raw(name)
        return dequantize(rows.view(-1), block_type, dtype).view(shape)

    def quantised(self, name: str) -> tuple[str, Tensor] | None:
        block_type, rows, _ = self.raw(name)
        return None if block_type.name in PLAIN_DTYPES else (block_type.name, rows)

    def raw(self, name: str) -> tuple[BlockType, Tensor, tuple[int, ...]]:
        """Block type, uint8 [output features, bytes of a row], and the shape of the numbers.

        A vector, which is never quantised, counts as rows of one number.
        """
        stored = self._stored(name)
        rows = torch.from_numpy(stored.data).view(stored.shape[0], -1)
        heads = self._permuted_heads(name)
        return (
            stored.block_type,
            rows if heads is None else self._restore_rows(name, rows, heads),
            stored.shape,
        )

    def _stored(self, name: str) -> StoredTensor:
        if name not in self._tensors:
            raise ModelLoadError(f"{self._path} has no tensor {name!r}; download the file again")
        return self._tensors[name]

    def _renamed(self, name: str) -> str:
        renamed = huggingface_name(name)
        if renamed is None:
            raise ModelLoadError(
                f"{self._path}: tensor {name!r} is no part of a {self.config.architecture}; "
                "the file needs an engine that knows this variant of the model"
            )
        return renamed

    def _refuse_unsupported(self) -> None:
        counts = Counter(tensor.block_type.name for tensor in self._tensors.values())
        for name, count in counts.items():
            if name not in SUPPORTED:
                raise ModelLoadError(
                    f"{self._path}: {count} tensors have the block type {name}, which is not supported; "
                    f"serve a file of another quantisation (supported types: {', '.join(SUPPORTED)})"
                )

        for name, tensor in self._tensors.items():
            if len(tensor.shape) == 1 and tensor.block_type.name not in PLAIN_DTYPES:
                raise ModelLoadError(f"{self._path}: vector {name!r} is quantised; download the file again")

    def _permuted_heads(self, name: str) -> int | None:
        if not self._pairs_rotated:
            return None
        module = name.rpartition(".")[0]
        if module.endswith(".q_proj"):
            return self.config.num_heads
        return self.config.num_kv_heads if module.endswith(".k_proj") else None

    def _restore_rows(self, name: str, rows: Tensor, heads: int) -> Tensor:
        """Within a head GGUF has rows 0, n/2, 1, n/2 + 1, ...; give them back in order 0, 1, 2, ..."""
        if rows.shape[0] != heads * self.config.head_dim:
            raise ModelLoadError(
                f"{self._path}: tensor {name!r} has {rows.shape[0]} rows, not {heads} heads of "
                f"{self.config.head_dim}; download the file again"
            )
        return rows.view(heads, self.config.head_dim // 2, 2, -1).transpose(1, 2).reshape(rows.shape)
