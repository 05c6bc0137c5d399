"""Every option of engine and router, once: for the manifest, the pod's file and the command line.

EngineOptions           spec.engine: how an engine computes
└── ModelOptions        and what it serves: the arguments of `LLM(...)`
    └── ServeOptions    and how it is reached: `shoal serve`
TracingOptions          traces, of either program
RoutingOptions          spec.routing: how the requests of one model are spread (routing_options.py)
└── RouterOptions       and the process that does it: `shoal router`

What another block of the manifest says (model, parallelism, adapters, drain) is no field of spec.engine, so
that nobody says it twice. These are declarations only: flags.py reads a command line, spec.py a manifest.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from shoal_api.option_types import (
    BlockTokens,
    Bytes,
    Collector,
    Count,
    CountOrNone,
    Endpoints,
    GroupSize,
    Key,
    Keys,
    LoraPaths,
    Name,
    Namespaces,
    Percent,
    Place,
    Port,
    Seconds,
    SecondsOrNone,
    Seed,
    Share,
    ShareOrNone,
    Template,
)
from shoal_api.routing_options import RoutingOptions
from shoal_api.schema import Rule, Strict


class EngineOptions(Strict):
    """How an engine computes. Where vLLM has the same option it has the same name and meaning."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number format of the computation; auto takes what suits checkpoint and device.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the model runs; auto takes a CUDA GPU when there is one."
    )
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="CPU threads of one engine; unset takes every core the process may use."
    )
    max_model_len: Count | None = Field(
        default=None, description="Longest prompt plus answer in tokens; unset takes the model's own limit."
    )
    max_num_seqs: Annotated[int, Field(ge=1, le=8192)] | None = Field(
        default=None, description="Most requests computed in one step; unset chooses by device."
    )
    max_num_batched_tokens: Count | None = Field(
        default=None,
        description="Most tokens computed in one step, prefill and decode; unset chooses by device.",
    )
    max_num_queued_reqs: CountOrNone | None = Field(
        default=None,
        description="Waiting requests above which new ones get 429; unset chooses by maxNumSeqs.",
    )
    max_num_queued_tokens: CountOrNone | None = Field(
        default=None,
        description="Waiting prompt tokens above which new requests get 429; unset sets no such limit.",
    )
    long_prefill_token_threshold: Annotated[int, Field(ge=0, le=2**24)] | None = Field(
        default=None,
        description="Most tokens of one prompt in one step; unset adapts to the load, 0 sets no limit.",
    )
    gpu_memory_utilization: Share = Field(
        default=0.9,
        description="Share of the GPU's memory for weights, work space and KV cache of this engine.",
    )
    kv_cache_memory_bytes: Bytes | None = Field(
        default=None, description="Size of the KV cache in bytes; unset takes the memory that is left."
    )
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "float16", "fp8"] = Field(
        default="auto",
        description="Number format of the KV cache; auto takes that of the computation, fp8 is e4m3.",
    )
    block_size: BlockTokens = Field(
        default=16, description="Tokens in one block of the KV cache; a power of two up to 256."
    )
    enable_prefix_caching: bool = Field(
        default=True, description="Keep the KV blocks of ended requests for prompts that begin alike."
    )
    quantization: Literal["fp8", "int8", "int4"] | None = Field(
        default=None, description="Quantise the weights while loading; unset keeps what the checkpoint holds."
    )
    enable_lora: bool = Field(
        default=False, description="Serve LoRA adapters, also ones that are loaded later."
    )
    max_loras: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="Most different LoRA adapters in one step."
    )
    max_lora_rank: Annotated[int, Field(ge=1, le=512)] = Field(
        default=16, description="Largest rank of a LoRA adapter; memory is set aside for it."
    )
    speculative_method: Literal["draft", "ngram"] | None = Field(
        default=None,
        description="Guess tokens ahead by a draft model or from the request's own text; unset does not.",
    )
    speculative_model: Place | None = Field(
        default=None, description="Path or URI of the draft model, for speculative method draft."
    )
    num_speculative_tokens: GroupSize | None = Field(
        default=None, description="Tokens guessed ahead in one step; unset chooses by method."
    )
    load_format: Literal["auto", "dummy"] = Field(
        default="auto",
        description="auto reads the weights from the checkpoint, dummy makes up random ones for load tests.",
    )
    seed: Seed = Field(
        default=0, description="Seed of sampling for requests that bring none, and of dummy weights."
    )
    chat_template: Template | None = Field(
        default=None,
        description="Path of a Jinja chat template, or the template itself; unset takes the model's own.",
    )
    target_step_s: Seconds | None = Field(
        default=None,
        description="Seconds that a step may take while answers are written; prompts get less of it then; unset: any.",
    )
    deterministic: bool = Field(default=False, description="Same tokens in any batch or cache state; slower.")
    generation_config: Literal["auto", "vllm"] = Field(
        default="auto",
        description="Default sampling parameters: auto takes the model's own, vllm neutral ones.",
    )

    rules: ClassVar = (
        Rule("self.blockSize in [1, 2, 4, 8, 16, 32, 64, 128, 256]", "must be a power of two", "blockSize"),
        Rule(
            "!has(self.maxNumSeqs) || !has(self.maxNumBatchedTokens)"
            " || self.maxNumSeqs <= self.maxNumBatchedTokens",
            "must not be above maxNumBatchedTokens, each request takes a token of a step",
            "maxNumSeqs",
        ),
        Rule(
            "has(self.speculativeModel)"
            " == (has(self.speculativeMethod) && self.speculativeMethod == 'draft')",
            "belongs to speculativeMethod draft: give both or neither",
            "speculativeModel",
        ),
        Rule(
            "!has(self.numSpeculativeTokens) || has(self.speculativeMethod)",
            "needs a speculativeMethod, draft or ngram",
            "numSpeculativeTokens",
        ),
    )


class ModelOptions(EngineOptions):
    """What an engine serves and how it computes: everything `LLM(...)` needs, nothing of HTTP."""

    model: Place = Field(description="A model directory, a .gguf file, a URI or a build artifact.")
    revision: Name | None = Field(
        default=None, description="Branch, tag or commit of the model; unset takes the newest."
    )
    served_model_name: Name | None = Field(
        default=None, description="Name of the model in requests; unset takes the last part of MODEL."
    )
    tensor_parallel_size: GroupSize = Field(default=1, description="GPUs that share each layer.")
    pipeline_parallel_size: GroupSize = Field(
        default=1, description="Groups of GPUs that hold consecutive layers."
    )
    lora: LoraPaths = Field(
        default=(), description="LoRA adapter to load at start, as NAME=PATH; repeatable."
    )


class TracingOptions(Strict):
    """OpenTelemetry traces, with the packages of `shoal[tracing]`."""

    otlp_endpoint: Collector | None = Field(
        default=None,
        description="OTLP/HTTP base URL of a collector of traces; unset takes OTEL_EXPORTER_OTLP_ENDPOINT, or sends none.",
    )
    trace_sample_ratio: ShareOrNone = Field(
        default=1.0,
        description="Share of traces to send, of those that begin here; one that a caller began is the caller's to decide.",
    )


class ServeOptions(ModelOptions, TracingOptions):
    """`shoal serve`: one engine behind HTTP and gRPC."""

    host: Name = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 is every interface.")
    port: Port = Field(default=8000, description="HTTP port; 0 takes a free one.")
    grpc_port: Port | None = Field(
        default=None,
        description="gRPC port where routers watch the engine; 0 is none; unset takes 9000 or, if taken, a free one.",
    )
    api_key: Keys = Field(
        default=(), description="Key that clients must send as bearer token; repeatable; none asks none."
    )
    drain_timeout_s: SecondsOrNone = Field(
        default=300.0, description="Seconds that running requests get to end after SIGTERM."
    )


class RouterOptions(RoutingOptions, TracingOptions):
    """`shoal router`. Its routing options hold for models that bring none of their own."""

    endpoint: Endpoints = Field(
        default=(), description="Base URL of a replica; repeatable; none finds replicas through Kubernetes."
    )
    host: Name = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 is every interface.")
    port: Port = Field(default=8080, description="HTTP port; 0 takes a free one.")
    processes: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="Worker processes behind the port, for --endpoint only; in a cluster run more router pods.",
    )
    namespace: Namespaces = Field(
        default=(),
        description="Namespace whose LLMDeployments are routed; repeatable; '*' is every one; none takes the pod's own.",
    )
    selector: Annotated[str, Field(max_length=1024)] = Field(
        default="",
        description="Label selector of the LLMDeployments to route; empty takes all of the namespace.",
    )
    grpc_port: Port = Field(
        default=9000, description="Port where the operator reads the router's state; 0 takes a free one."
    )
    api_key: Keys = Field(
        default=(), description="Key that clients must send as bearer token; repeatable; none asks none."
    )
    api_keys_file: Place | None = Field(
        default=None,
        description="YAML or JSON file of keys with tenants and limits, read again when it changes.",
    )
    max_held_bytes: Bytes = Field(
        default=256 * 2**20,
        description="Bytes of requests that wait in the router, and of those that are being received; others are refused.",
    )
    engine_api_key: Key | None = Field(
        default=None, description="Key that the engines ask for; a client's own never reaches them then."
    )
    max_resume_bytes: Bytes = Field(
        default=256 * 2**20,
        description="Bytes of all requests that are kept so that their streams can be resumed; beyond it they cannot.",
    )
    health_interval_s: Seconds = Field(
        default=1.0, description="Seconds between two health checks of a replica."
    )
    health_timeout_s: Seconds = Field(
        default=2.0, description="Seconds after which a health check has failed."
    )
    connect_timeout_s: Seconds = Field(default=1.0, description="Seconds to open a connection to a replica.")
    first_byte_timeout_s: Seconds = Field(
        default=300.0, description="Seconds from a request to the first byte of a streamed reply."
    )
    idle_timeout_s: Seconds = Field(
        default=60.0, description="Longest pause in seconds between two pieces of a reply."
    )
    total_timeout_s: Seconds = Field(default=3600.0, description="Longest time in seconds for one request.")
    max_retries: Annotated[int, Field(ge=0, le=10)] = Field(
        default=2, description="Further replicas that are tried when one fails before its first byte."
    )
    retry_budget_percent: Percent = Field(
        default=20,
        description="Most retries per hundred recent requests, so that a failing fleet is not flooded; "
        "the first move off a replica that is gone is free.",
    )
    max_body_bytes: Bytes = Field(
        default=8 * 2**20, description="Largest request body; a larger one gets 413."
    )
    max_header_bytes: Bytes = Field(
        default=16 * 2**10, description="Largest request head; a larger one gets 431."
    )
    drain_delay_s: SecondsOrNone = Field(
        default=0.0,
        description="Seconds after SIGTERM in which it goes on, so that clients and load balancers learn of the end.",
    )
    drain_timeout_s: SecondsOrNone = Field(
        default=300.0, description="Seconds that running requests get to end after that."
    )
    access_log: bool = Field(
        default=False, description="Write a JSON line per request to stdout; SIGUSR1 turns it on and off."
    )
