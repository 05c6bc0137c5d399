"""HTTP of a simulated engine: what our router asks and what the peers ask. Parses what a benchmark sends, no more."""

from __future__ import annotations

import asyncio
from struct import unpack
from typing import cast

import httptools
import msgspec
from simulated_cache import BLOCK_TOKENS, TOKEN_BYTES
from simulated_scheduler import Engine, Sequence

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"
STREAM_HEAD = HEAD % b"text/event-stream; charset=utf-8" + b"transfer-encoding: chunked\r\n\r\n"
RESUMABLE_HEAD = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nx-shoal-resume: c2lt\r\n\r\n")
JSON = b"application/json"
CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1764000000,"model":"sim",'
    b'"choices":[{"index":0,"delta":{"content":" tok%d"},"logprobs":null,"finish_reason":null}]}\n\n'
)
INFO = b'{"model_path":"sim","tokenizer_path":"sim","served_model_name":"sim","is_generation":true}'


class Body(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: int = 1
    max_completion_tokens: int = 0  # its newer name, which sglang-router and smg write in its place
    stream: bool = False

    @property
    def answer_tokens(self) -> int:
        return self.max_completion_tokens or self.max_tokens


class Connection(asyncio.Protocol):
    """One HTTP connection to an engine, one request at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.parser = httptools.HttpRequestParser(self)
        self.body = self.path = self.chain = b""
        self.resumable = False  # our router asks for streams that could go on elsewhere, ours never have to
        self.sequence: Sequence | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.sequence is not None:
            self.sequence.gone = True

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path = url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-shoal-chain":
            self.chain = value
        elif name.lower() == b"x-shoal-resumable":
            self.resumable = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        path, body, chain = self.path.partition(b"?")[0], self.body, self.chain
        self.body = self.chain = b""
        resumable, self.resumable = self.resumable, False
        if path in (b"/v1/chat/completions", b"/v1/completions"):
            self.complete(msgspec.json.decode(body, type=Body), chain, resumable)
        elif path in (b"/tokenize", b"/v1/chat/completions/render"):
            self.send(JSON, self.tokens(bytes(msgspec.json.decode(body, type=Body).messages)))
        elif path == b"/metrics":
            self.send(b"text/plain", self.metrics())
        elif path == b"/v1/models":
            self.send(JSON, b'{"object":"list","data":[{"id":"sim","object":"model"}]}')
        elif path in (b"/get_model_info", b"/model_info", b"/get_server_info", b"/server_info"):
            self.send(JSON, INFO)
        else:
            self.send(JSON, b"{}")

    def complete(self, body: Body, chain: bytes, resumable: bool) -> None:
        emit = self.whole
        if body.stream:
            emit = self.resumable_event if resumable else self.event
        sequence = self.sequence = Sequence(bytes(body.messages), chain, body.answer_tokens, emit, [])
        if body.stream:
            self.transport.write(RESUMABLE_HEAD if resumable else STREAM_HEAD)
        self.engine.submit(sequence)

    def tokens(self, content: bytes) -> bytes:
        """The prompt as a tokenizer would give it: four bytes are one token."""
        count = len(content) // TOKEN_BYTES
        ids = unpack(f"<{count}I", content[: count * TOKEN_BYTES])
        return msgspec.json.encode({"tokens": ids, "token_ids": ids, "count": count, "max_model_len": 131072})

    def send(self, content_type: bytes, body: bytes) -> None:
        self.transport.write(HEAD % content_type + b"content-length: %d\r\n\r\n%b" % (len(body), body))

    def whole(self, sequence: Sequence) -> None:
        if sequence.generated == sequence.max_tokens and not sequence.gone:
            self.send(JSON, b'{"choices":[{"message":{"content":"tok"}}],%b}' % usage(sequence))

    def event(self, sequence: Sequence) -> None:
        if sequence.gone:
            return
        data = CHUNK % sequence.generated
        if sequence.generated < sequence.max_tokens:
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            data += b'data: {"choices":[],%b}\n\ndata: [DONE]\n\n' % usage(sequence)
            self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))

    def resumable_event(self, sequence: Sequence) -> None:
        if sequence.gone:
            return
        data = b":shoal tokens %d\n%b" % (1000 + sequence.generated, CHUNK % sequence.generated)
        if sequence.generated < sequence.max_tokens:
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            data += b':shoal usage \ndata: {"choices":[],%b}\n\n:shoal done \ndata: [DONE]\n\n' % usage(
                sequence
            )
            self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))

    def metrics(self) -> bytes:
        engine = self.engine
        values = {
            "vllm:num_requests_running": len(engine.running),
            "vllm:num_requests_waiting": len(engine.waiting),
            "vllm:kv_cache_usage_perc": engine.kv_usage,
            "vllm:prompt_tokens_total": engine.prompt_tokens,
            "vllm:prompt_tokens_cached_total": engine.cached_tokens,
            "vllm:request_success_total": engine.requests,
            "shoal:grpc_port": engine.grpc_port,
            f'vllm:cache_config_info{{block_size="{BLOCK_TOKENS}",num_gpu_blocks="{engine.speed.cache_blocks}"}}': 1,
        }
        return "".join(f"{name} {value}\n" for name, value in values.items()).encode()


def usage(sequence: Sequence) -> bytes:
    return b'"usage":{"prompt_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}' % (
        sequence.prompt_tokens,
        sequence.cached_tokens,
    )
