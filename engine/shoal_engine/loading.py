"""From options to a running engine: device, number format, memory, weights, and one real token. No step logic here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from shoal_api.options import ModelOptions
from shoal_engine.blocks import BlockPool
from shoal_engine.checkpoint import Checkpoint, open_checkpoint
from shoal_engine.config import ModelConfig, read_config
from shoal_engine.engine import Engine
from shoal_engine.errors import ModelLoadError
from shoal_engine.kernels.cpu import cpu_kernels
from shoal_engine.limits import SchedulerLimits
from shoal_engine.memory_layout import CacheLayout, host_budget_bytes, num_blocks
from shoal_engine.messages import Loading, Ready, Submit
from shoal_engine.model_path import local_path
from shoal_engine.models.llama import Llama
from shoal_engine.runner import Placement, Runner, load_model, random_model
from shoal_engine.sampler import Sampler
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.scheduler import Scheduler

Progress = Callable[[Loading], None]

# On a CPU a step of 512 tokens takes a sixth of a second with a small model: longer ones would stall the streams that
# are being decoded, and the matrix products are as efficient as they get at this size.
CPU_MAX_NUM_BATCHED_TOKENS = 512
CPU_MAX_NUM_SEQS = 64
# Further requests get 429 at once: at this depth a wait is longer than clients have patience.
QUEUED_PER_SEAT = 16
WARMUP_ID = "warmup"


def load_engine(options: ModelOptions, progress: Progress = lambda _: None) -> Engine:
    """Load the model and generate one token with it. Raises ModelLoadError that says what to change."""
    refuse_unsupported(options)
    path = local_path(options.model)
    phases: dict[str, float] = {}
    started = time.monotonic()
    checkpoint = None if options.load_format == "dummy" else open_checkpoint(path)
    config = read_config(path) if checkpoint is None else checkpoint.config
    place = choose_placement(options)
    model = _model(options, config, checkpoint, place, progress)
    phases["weights"] = time.monotonic() - started
    engine = _engine(options, config, path, place, model, phases)
    progress(Loading("warmup"))
    started = time.monotonic()
    _generate_one_token(engine)
    phases["warmup"] = time.monotonic() - started
    return engine


def refuse_unsupported(options: ModelOptions) -> None:
    """Options that the schema knows and this engine does not have. Silence would serve something else than was asked for."""
    refused = (
        ("--device cuda", options.device == "cuda"),
        ("--tensor-parallel-size", options.tensor_parallel_size != 1),
        ("--pipeline-parallel-size", options.pipeline_parallel_size != 1),
        ("--quantization", options.quantization is not None),
        ("--kv-cache-dtype", options.kv_cache_dtype != "auto"),
        ("--enable-lora", options.enable_lora or bool(options.lora)),
        (
            "--speculative-method",
            options.speculative_method is not None or options.speculative_model is not None,
        ),
        ("--dtype float16", options.dtype == "float16"),
    )
    for flag, given in refused:
        if given:
            raise ModelLoadError(f"{flag} is not supported by this version of the engine; leave it out")


def choose_placement(options: ModelOptions) -> Placement:
    """CPU, with as many threads as asked for; bfloat16 where the processor multiplies it natively."""
    torch.set_num_threads(options.num_threads or len(os.sched_getaffinity(0)))
    torch.set_grad_enabled(False)
    dtype = getattr(torch, options.dtype) if options.dtype != "auto" else _auto_dtype()
    return Placement(torch.device("cpu"), dtype, cpu_kernels())


def _auto_dtype() -> torch.dtype:
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def _max_model_len(options: ModelOptions, config: ModelConfig) -> int:
    limit = config.max_position_embeddings
    if options.max_model_len is not None and options.max_model_len > limit:
        raise ModelLoadError(f"--max-model-len {options.max_model_len} exceeds the model's {limit} positions")
    return options.max_model_len or limit


def _model(
    options: ModelOptions,
    config: ModelConfig,
    checkpoint: Checkpoint | None,
    place: Placement,
    progress: Progress,
) -> Llama:
    """Without a checkpoint its weights are random."""
    max_model_len = _max_model_len(options, config)
    if checkpoint is None:
        return random_model(config, place, max_model_len, options.seed)
    total = checkpoint.total_bytes
    return load_model(
        config, checkpoint, place, max_model_len, lambda done: progress(Loading("weights", done, total))
    )


def _engine(
    options: ModelOptions,
    config: ModelConfig,
    path: Path,
    place: Placement,
    model: Llama,
    phases: dict[str, float],
) -> Engine:
    limits = _limits(options, config)
    layout = CacheLayout(
        config.num_layers, config.num_kv_heads, config.head_dim, options.block_size, place.dtype.itemsize
    )
    budget = options.kv_cache_memory_bytes or host_budget_bytes(psutil.virtual_memory().available)
    blocks = num_blocks(layout, budget, limits.max_model_len, limits.max_num_seqs)
    pool = BlockPool(blocks, options.enable_prefix_caching)
    try:
        scheduler = Scheduler(limits, pool, eos_token_ids=config.eos_token_ids)
    except ValueError as error:  # a sliding window that the cache cannot hold
        raise ModelLoadError(f"{error}; see --kv-cache-memory-bytes and --max-num-batched-tokens") from error
    return Engine(
        runner=Runner(model, layout, blocks, limits.max_num_seqs, limits.max_model_len, place),
        scheduler=scheduler,
        sampler=Sampler(config.vocab_size, place.device, options.seed),
        config=config,
        model_path=path,
        ready=_ready(limits, blocks, config, place, phases),
    )


def _limits(options: ModelOptions, config: ModelConfig) -> SchedulerLimits:
    max_num_seqs = options.max_num_seqs or CPU_MAX_NUM_SEQS
    return SchedulerLimits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens or CPU_MAX_NUM_BATCHED_TOKENS,
        max_model_len=_max_model_len(options, config),
        block_tokens=options.block_size,
        max_num_queued_reqs=_first_given(options.max_num_queued_reqs, QUEUED_PER_SEAT * max_num_seqs),
        max_num_queued_tokens=options.max_num_queued_tokens,
        long_prefill_token_threshold=options.long_prefill_token_threshold,
        sliding_window=config.sliding_window if config.sliding_layers is None else None,
    )


def _ready(
    limits: SchedulerLimits, blocks: int, config: ModelConfig, place: Placement, phases: dict[str, float]
) -> Ready:
    return Ready(
        max_model_len=limits.max_model_len,
        num_blocks=blocks,
        block_tokens=limits.block_tokens,
        vocab_size=config.vocab_size,
        device=str(place.device),
        dtype=str(place.dtype).removeprefix("torch."),
        load_seconds=phases,
        max_requests=limits.max_num_seqs + (limits.max_num_queued_reqs or 0),
        max_num_seqs=limits.max_num_seqs,
    )


def _first_given(value: int | None, default: int) -> int:
    return default if value is None else value


def _generate_one_token(engine: Engine) -> None:
    """The proof behind `/ready`, and the first-use costs (oneDNN, page faults) paid before a client waits for them."""
    engine.add(
        Submit(WARMUP_ID, [engine.config.bos_token_id or 0], SamplingParams(max_tokens=1, temperature=0.0))
    )
    while engine.has_work:
        for output in engine.step():
            if output.finish_reason == "error":
                raise ModelLoadError(f"the model cannot generate: {output.error_message}")
