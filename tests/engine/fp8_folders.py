"""Hugging Face folders whose layers are float8, written as the tools that publish such checkpoints write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import FloatQuantizationCompressor, NaiveQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

LARGEST = 448.0
Tensors = dict[str, Tensor]


def small_model(intermediate: int = 384) -> Any:
    """Wider than one block of 128 in every direction, with k and v of exactly one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=199,
        hidden_size=256,
        intermediate_size=intermediate,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def peaks(weight: Tensor, strategy: str) -> Tensor:
    """The largest number of the matrix [1], of each row [N, 1], or of each block of 128 x 128."""
    size = weight.abs().float()
    if strategy == "tensor":
        return size.amax().reshape(1)
    if strategy == "channel":
        return size.amax(1, keepdim=True)
    rows, columns = (-(-side // 128) for side in size.shape)
    padded = torch.zeros(rows * 128, columns * 128)
    padded[: size.shape[0], : size.shape[1]] = size
    return padded.view(rows, 128, columns, 128).amax((1, 3))


def save_compressed(folder: Path, preset: str, rounds_input: bool = True, intermediate: int = 384) -> Tensors:
    """compressed-tensors' own compressor writes the layers' matrices; returns all tensors as its decompressor reads them."""
    scheme = QuantizationScheme(targets=["Linear"], **PRESET_SCHEMES[preset])
    if not rounds_input:
        scheme.input_activations = None
    compressor = FloatQuantizationCompressor if rounds_input else NaiveQuantizationCompressor
    read: Tensors = {}

    def compress(name: str, weight: Tensor) -> Tensors:
        scale = peaks(weight, str(scheme.weights.strategy)) / LARGEST
        stored = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
        read[name] = compressor.decompress(stored, scheme)["weight"]
        return {name: stored["weight"], f"{name}_scale": stored["weight_scale"]}

    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=["lm_head"],
        format="float-quantized" if rounds_input else "naive-quantized",
        quantization_status="compressed",
    )
    plain = rewrite(folder, small_model(intermediate), compress, config.model_dump(mode="json"))
    return plain | read


def save_finegrained(folder: Path, in_blocks: bool, suffix: str = "_scale_inv", **config: Any) -> None:
    """As transformers and the DeepSeek and Qwen releases: a factor for each block, or one for each matrix."""

    def compress(name: str, weight: Tensor) -> Tensors:
        scale = peaks(weight, "block" if in_blocks else "tensor") / LARGEST
        wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1) if in_blocks else scale
        values = (weight / wide[: weight.shape[0], : weight.shape[1]] if in_blocks else weight / wide).to(
            torch.float8_e4m3fn
        )
        return {name: values, name + suffix: scale if in_blocks else scale[0]}

    quantization = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128] if in_blocks else None,
        "modules_to_not_convert": ["lm_head"],
        **config,
    }
    rewrite(folder, small_model(), compress, quantization)


def rewrite(
    folder: Path, model: Any, compress: Callable[[str, Tensor], Tensors], quantization: dict[str, Any]
) -> Tensors:
    """Save `model` with the layers' matrices replaced; returns the tensors that are left as they were."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    plain, written = {}, {}
    for name, tensor in load_file(path).items():
        if name.startswith("model.layers.") and tensor.dim() == 2:
            written |= compress(name, tensor)
        else:
            plain[name] = written[name] = tensor
    save_file(written, path, {"format": "pt"})
    change_config(folder, quantization_config=quantization)
    return plain


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[Tensors], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
