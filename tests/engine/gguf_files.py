"""Small GGUF files for tests, written with the `gguf` package: the reader under test had no part in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = Mapping[str, Array | tuple[Array, gguf.GGMLQuantizationType]]

BYTES = list(gguf.bytes_to_unicode().values())
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "1 2", "Ġ Ġ", "é x"]  # `é` spells one byte here
WORDS = [merge.replace(" ", "") for merge in MERGES]
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
BPE_TOKENS = [*BYTES, *WORDS, "<|start|>", "<|im_end|>", "<think>"]
BPE_TYPES = [NORMAL] * (len(BYTES) + len(WORDS)) + [CONTROL, CONTROL, USER_DEFINED]
BPE_METADATA = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": BPE_TOKENS,
    "tokenizer.ggml.token_type": BPE_TYPES,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": BPE_TOKENS.index("<|start|>"),
    "tokenizer.ggml.eos_token_id": BPE_TOKENS.index("<|im_end|>"),
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}

_PIECES = [
    "▁",
    "▁h",
    "he",
    "▁he",
    "ll",
    "hell",
    "hello",
    "▁hello",
    "▁w",
    "or",
    "ld",
    "▁wor",
    "▁world",
    "日本",
]
_LETTERS = [*"abcdefghijklmnopqrstuvwxyz.,!?", "日", "本"]
SPM_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_PIECES, *_LETTERS]
SPM_METADATA = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": SPM_TOKENS,
    "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(SPM_TOKENS) - 259)],
    "tokenizer.ggml.token_type": [2, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(SPM_TOKENS) - 259),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Tensors, arch: str = "llama") -> Path:
    """Python values choose their GGUF type: bool, int (u32), float (f32), str, lists of one of these."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if isinstance(value, int) and not isinstance(value, bool):
            writer.add_uint32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, tensor in tensors.items():
        values, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def head_dim(arch: str) -> int:
    """transformers takes every Qwen3 in a GGUF file to have heads of 128, whatever the file says."""
    return 128 if arch == "qwen3" else 8


def model_metadata(arch: str, **changes: Any) -> dict[str, Any]:
    """Of a model with two layers, four heads and two key/value heads; None leaves a key out."""
    own = {
        "context_length": 64,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": head_dim(arch),
        "attention.value_length": head_dim(arch),
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    } | changes
    return {f"{arch}.{key}": value for key, value in own.items() if value is not None}


def model_tensors(arch: str, vocab_size: int = len(BPE_TOKENS), tied: bool = True) -> dict[str, Array]:
    """Random float32 weights with the names of llama.cpp, each what its architecture has."""
    random = np.random.default_rng(vocab_size)

    def weights(*shape: int) -> Array:
        return random.standard_normal(shape, np.float32)

    tensors = {"token_embd.weight": weights(vocab_size, 32), "output_norm.weight": weights(32)}
    if not tied:
        tensors["output.weight"] = weights(vocab_size, 32)
    size = head_dim(arch)
    for block in ("blk.0", "blk.1"):
        for name, heads in (("q", 4), ("k", 2), ("v", 2)):
            tensors[f"{block}.attn_{name}.weight"] = weights(heads * size, 32)
            if arch == "qwen2":
                tensors[f"{block}.attn_{name}.bias"] = weights(heads * size)
        if arch == "qwen3":
            tensors |= {f"{block}.attn_{name}_norm.weight": weights(size) for name in "qk"}
        tensors[f"{block}.attn_output.weight"] = weights(32, 4 * size)
        tensors |= {f"{block}.{name}_norm.weight": weights(32) for name in ("attn", "ffn")}
        tensors |= {f"{block}.ffn_{name}.weight": weights(48, 32) for name in ("gate", "up")}
        tensors[f"{block}.ffn_down.weight"] = weights(32, 48)
    return tensors


def write_model(path: Path, arch: str = "llama", tied: bool = True, **changes: Any) -> Path:
    """A complete small model with a byte-level tokenizer. `changes` are metadata keys of the architecture."""
    return write_gguf(
        path, model_metadata(arch, **changes) | BPE_METADATA, model_tensors(arch, tied=tied), arch
    )
