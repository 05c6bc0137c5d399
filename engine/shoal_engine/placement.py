"""Where a model runs: the device and the number formats, from the options and what the machine has. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shoal_api.options import ModelOptions
from shoal_engine.errors import ModelLoadError
from shoal_engine.kernels.interface import Kernels

MIN_CAPABILITY = (8, 0)  # bfloat16 products
FLOAT8_CAPABILITY = (8, 9)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs, in which type, with which kernels. cache_dtype is that of keys and values at rest."""

    device: torch.device
    dtype: torch.dtype
    kernels: Kernels
    cache_dtype: torch.dtype


def choose_device(wanted: str) -> torch.device:
    """`auto` takes a GPU when there is one that serves. Raises ModelLoadError that says why there is none."""
    if wanted == "cpu":
        return torch.device("cpu")
    missing = _why_no_gpu()
    if missing is None:
        return torch.device("cuda", torch.cuda.current_device())
    if wanted == "cuda":
        raise ModelLoadError(f"--device cuda: {missing}")
    return torch.device("cpu")


def choose_dtype(options: ModelOptions, device: torch.device) -> torch.dtype:
    """bfloat16 where it is multiplied natively, unless another is asked for."""
    if options.dtype != "auto":
        dtype: torch.dtype = getattr(torch, options.dtype)
        return dtype
    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.float32


def refuse_unsupported(options: ModelOptions, device: torch.device) -> None:
    """Options that the schema knows and this engine does not have. Silence would serve something else than was asked for."""
    narrow = ("fp8",) if _computes_float8(device) and options.dtype in ("auto", "bfloat16") else ()
    speculative = options.speculative_method is not None or options.speculative_model is not None
    refused = (
        ("--tensor-parallel-size", options.tensor_parallel_size != 1),
        ("--pipeline-parallel-size", options.pipeline_parallel_size != 1),
        (f"--quantization {options.quantization}", options.quantization not in (None, *narrow)),
        (
            f"--kv-cache-dtype {options.kv_cache_dtype}",
            options.kv_cache_dtype not in ("auto", options.dtype, *narrow),
        ),
        ("--enable-lora", options.enable_lora or bool(options.lora)),
        ("--speculative-method", speculative),
        ("--dtype float16", options.dtype == "float16"),
    )
    for flag, given in refused:
        if given:
            raise ModelLoadError(
                f"{flag} is not supported by this version of the engine on this {device.type}; leave it out"
            )


def _computes_float8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FLOAT8_CAPABILITY


def _why_no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return (
            "torch finds no CUDA GPU; see that nvidia-smi lists one, that the pod asks for nvidia.com/gpu, and that torch"
            " is a CUDA build"
        )
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        have, need = (f"{major}.{minor}" for major, minor in (capability, MIN_CAPABILITY))
        return f"the GPU has compute capability {have}, this engine needs {need} (A100) or later"
    return None
