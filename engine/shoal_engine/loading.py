"""From options to a running engine: weights, memory, and one real token. What depends on the device is its backend's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from shoal_api.options import ModelOptions
from shoal_engine.backend import Backend, StepDefaults, backend_for
from shoal_engine.blocks import BlockPool
from shoal_engine.checkpoint import Checkpoint, open_checkpoint
from shoal_engine.config import ModelConfig, read_config
from shoal_engine.engine import Engine
from shoal_engine.errors import ModelLoadError
from shoal_engine.limits import SchedulerLimits
from shoal_engine.memory_layout import CacheLayout, dense_copy_fits, num_blocks
from shoal_engine.messages import Loading, Ready, Submit
from shoal_engine.model_path import local_path
from shoal_engine.models import model_class
from shoal_engine.models.llama import Llama
from shoal_engine.placement import Placement
from shoal_engine.runner import empty_cache
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.scheduler import Scheduler
from shoal_engine.weights import ModelWeights, Quantise, RandomWeights, Weights

Progress = Callable[[Loading], None]

# Further requests get 429 at once: at this depth a wait is longer than clients have patience.
QUEUED_PER_SEAT = 16
# Fair shares of a step smaller than this, or than a quarter of it, would only cut prompts into more pieces.
MIN_SHARED_CHUNK = 512
WARMUP_ID = "warmup"


def load_engine(options: ModelOptions, progress: Progress = lambda _: None) -> Engine:
    """Load the model and generate one token with it. Raises ModelLoadError that says what to change."""
    phases = Phases()
    with phases.timed("device"):
        backend = backend_for(options)
    path = local_path(options.model)
    with phases.timed("weights"):
        checkpoint = None if options.load_format == "dummy" else open_checkpoint(path)
        config = read_config(path) if checkpoint is None else checkpoint.config
        model = build_model(options, config, checkpoint, backend.place, progress)
    with phases.timed("kernels"):
        backend.finish_kernels(lambda: progress(Loading("kernels")))
    with phases.timed("memory"):
        engine = _engine(options, config, path, backend, model, phases.seconds)
    progress(Loading("warmup"))
    with phases.timed("warmup"):
        _generate_one_token(engine)
        backend.warm_up(engine)
    return engine


class Phases:
    """How long each part of the start took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started


def _max_model_len(options: ModelOptions, config: ModelConfig) -> int:
    limit = config.max_position_embeddings
    if options.max_model_len is not None and options.max_model_len > limit:
        raise ModelLoadError(f"--max-model-len {options.max_model_len} exceeds the model's {limit} positions")
    return options.max_model_len or limit


def build_model(
    options: ModelOptions,
    config: ModelConfig,
    checkpoint: Checkpoint | None,
    place: Placement,
    progress: Progress = lambda _: None,
) -> Llama:
    """Without a checkpoint its weights are random. Raises ModelLoadError."""
    quantise: Quantise | None = "fp8" if options.quantization == "fp8" else None
    weights: ModelWeights
    if checkpoint is None:
        weights = RandomWeights(place.dtype, place.device, options.seed, quantise, options.deterministic)
    else:
        total = checkpoint.total_bytes
        weights = Weights(
            checkpoint,
            place.dtype,
            place.device,
            lambda done: progress(Loading("weights", done, total)),
            dense_copy_fits(total, psutil.virtual_memory().available),
            quantise,
            options.deterministic,
        )
    build = model_class(config.architecture)
    return build(config, weights, place.kernels, _max_model_len(options, config))


def layout_of(options: ModelOptions, config: ModelConfig, place: Placement) -> CacheLayout:
    """How the KV cache of a model is cut at this place."""
    return CacheLayout(
        config.num_layers,
        config.num_kv_heads,
        config.head_dim,
        options.block_size,
        place.cache_dtype.itemsize,
    )


def _engine(
    options: ModelOptions,
    config: ModelConfig,
    path: Path,
    backend: Backend,
    model: Llama,
    phases: dict[str, float],
) -> Engine:
    place, limits = backend.place, limits_of(options, config, backend.defaults)
    layout = layout_of(options, config, place)
    budget = options.kv_cache_memory_bytes or backend.cache_budget_bytes(options, model, layout, limits)
    blocks = num_blocks(layout, budget, limits.max_model_len, limits.max_num_seqs)
    pool = BlockPool(blocks, options.enable_prefix_caching)
    try:
        scheduler = Scheduler(limits, pool, eos_token_ids=config.eos_token_ids)
    except ValueError as error:  # a sliding window that the cache cannot hold
        raise ModelLoadError(f"{error}; see --kv-cache-memory-bytes and --max-num-batched-tokens") from error
    return Engine(
        runner=backend.runner(model, empty_cache(layout, blocks, place), layout, limits),
        scheduler=scheduler,
        sampler=backend.sampler(config.vocab_size, options.seed, limits),
        config=config,
        model_path=path,
        ready=_ready(limits, blocks, config, place, phases),
        steps_ahead=backend.steps_ahead,
    )


def limits_of(options: ModelOptions, config: ModelConfig, defaults: StepDefaults) -> SchedulerLimits:
    max_num_seqs = options.max_num_seqs or defaults.max_num_seqs
    max_num_batched_tokens = options.max_num_batched_tokens or defaults.max_num_batched_tokens
    return SchedulerLimits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        min_shared_chunk=max(MIN_SHARED_CHUNK, max_num_batched_tokens // 4),
        max_model_len=_max_model_len(options, config),
        block_tokens=options.block_size,
        max_num_queued_reqs=_first_given(options.max_num_queued_reqs, QUEUED_PER_SEAT * max_num_seqs),
        max_num_queued_tokens=options.max_num_queued_tokens,
        long_prefill_token_threshold=options.long_prefill_token_threshold,
        target_step_s=options.target_step_s,
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
        eos_token_ids=frozenset(config.eos_token_ids),
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
