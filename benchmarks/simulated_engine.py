"""Simulated engines for router benchmarks: a paged LRU cache, chunked prefill and continuous batching.

No model and no tokens: one token is
four bytes of the prompt. Milliseconds do not transfer to a GPU; the order of routers does. `python
simulated_engine.py --ports 9101,9102` runs one engine per port in one process.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass

import httptools
import msgspec
import uvloop
import xxhash

TOKEN_BYTES = 4
BLOCK_TOKENS = 16
BLOCK_BYTES = BLOCK_TOKENS * TOKEN_BYTES

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"
STREAM_HEAD = HEAD % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Speed:
    """What a step costs, in seconds; `instant` engines answer at once, to measure routers alone."""

    instant: bool = False
    step_s: float = 0.008
    step_per_sequence_s: float = 0.00005
    prefill_per_token_s: float = 0.00005
    chunk_tokens: int = 2048
    max_running: int = 32
    cache_blocks: int = 2048


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine."""

    connection: Connection
    blocks: list[int]
    prompt_tokens: int
    max_tokens: int
    stream: bool
    cached_tokens: int = 0
    left_to_prefill: int = -1  # unknown until it is admitted
    generated: int = 0
    gone: bool = False


class Body(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: int = 1
    stream: bool = False


class Engine:
    """One replica's cache and scheduler."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self.cache: OrderedDict[int, None] = OrderedDict()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.requests = 0
        self._work = asyncio.Event()
        self.task = None if speed.instant else asyncio.get_running_loop().create_task(self._run())

    def submit(self, connection: Connection, body: bytes) -> Sequence:
        fields = msgspec.json.decode(body, type=Body)
        content = bytes(fields.messages)
        blocks: list[int] = []
        if not self.speed.instant:
            parent = 0
            for end in range(BLOCK_BYTES, len(content) + 1, BLOCK_BYTES):
                parent = xxhash.xxh3_64_intdigest(content[end - BLOCK_BYTES : end], parent)
                blocks.append(parent)
        tokens = max(1, len(content) // TOKEN_BYTES)
        sequence = Sequence(connection, blocks, tokens, fields.max_tokens, fields.stream)
        self.requests += 1
        if self.speed.instant:
            sequence.generated = sequence.max_tokens
            connection.finish(sequence)
        else:
            self.waiting.append(sequence)
            self._work.set()
        return sequence

    async def _run(self) -> None:
        speed = self.speed
        while True:
            if not self.waiting and not self.running:
                self._work.clear()
                await self._work.wait()
            while self.waiting and len(self.running) < speed.max_running:
                self._admit(self.waiting.popleft())
            budget = speed.chunk_tokens
            for sequence in self.running:
                chunk = min(budget, sequence.left_to_prefill)
                sequence.left_to_prefill -= chunk
                budget -= chunk
            prefilled = speed.chunk_tokens - budget
            step_s = speed.step_s + len(self.running) * speed.step_per_sequence_s
            await asyncio.sleep(step_s + prefilled * speed.prefill_per_token_s)
            for sequence in self.running:
                if sequence.left_to_prefill == 0 and not sequence.gone:
                    self._emit(sequence)
            self.running = [s for s in self.running if s.generated < s.max_tokens and not s.gone]

    def _admit(self, sequence: Sequence) -> None:
        hits = 0
        for block in sequence.blocks:
            if block not in self.cache:
                break
            hits += 1
        hits = min(hits, (sequence.prompt_tokens - 1) // BLOCK_TOKENS)
        for block in reversed(sequence.blocks):
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.speed.cache_blocks:
            self.cache.popitem(last=False)
        sequence.cached_tokens = hits * BLOCK_TOKENS
        sequence.left_to_prefill = sequence.prompt_tokens - sequence.cached_tokens
        self.prompt_tokens += sequence.prompt_tokens
        self.cached_tokens += sequence.cached_tokens
        self.running.append(sequence)

    def _emit(self, sequence: Sequence) -> None:
        sequence.generated += 1
        if sequence.stream:
            sequence.connection.event(sequence)
        if sequence.generated == sequence.max_tokens:
            sequence.connection.finish(sequence)

    def metrics(self) -> bytes:
        return (
            f"vllm:num_requests_running {len(self.running)}\nvllm:num_requests_waiting {len(self.waiting)}\n"
            f'vllm:cache_config_info{{block_size="{BLOCK_TOKENS}",num_gpu_blocks="{self.speed.cache_blocks}"}} 1\n'
            f"vllm:prompt_tokens_total {self.prompt_tokens}\nvllm:prompt_tokens_cached_total {self.cached_tokens}\n"
            f"vllm:request_success_total {self.requests}\n"
        ).encode()


class Connection(asyncio.Protocol):
    """One HTTP connection to an engine, one request at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.path = b""
        self.sequence: Sequence | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.sequence is not None:
            self.sequence.gone = True

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path = url

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        body, self.body = self.body, b""
        if self.path == b"/metrics":
            self.send(b"text/plain", self.engine.metrics())
        elif self.path == b"/v1/models":
            self.send(b"application/json", b'{"object":"list","data":[{"id":"sim","object":"model"}]}')
        elif self.path == b"/ready":
            self.send(b"application/json", b"{}")
        else:
            self.sequence = self.engine.submit(self, body)
            if self.sequence.stream and not self.engine.speed.instant:
                self.transport.write(STREAM_HEAD)

    def send(self, content_type: bytes, body: bytes) -> None:
        self.transport.write(HEAD % content_type + b"content-length: %d\r\n\r\n%b" % (len(body), body))

    def event(self, sequence: Sequence) -> None:
        data = b'data: {"choices":[{"index":0,"delta":{"content":"tok %d"}}]}\n\n' % sequence.generated
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self, sequence: Sequence) -> None:
        if sequence.gone:
            return
        usage = b'"usage":{"prompt_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}' % (
            sequence.prompt_tokens,
            sequence.cached_tokens,
        )
        if not sequence.stream:
            self.send(b"application/json", b'{"choices":[{"message":{"content":"tok"}}],%b}' % usage)
            return
        if self.engine.speed.instant:
            self.transport.write(STREAM_HEAD)
        data = b'data: {"choices":[],%b}\n\ndata: [DONE]\n\n' % usage
        self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))


async def serve(ports: list[int], speed: Speed) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        engine = Engine(speed)
        await loop.create_server(lambda engine=engine: Connection(engine), "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports", required=True, help="comma-separated, one engine each")
    parser.add_argument("--instant", action="store_true", help="answer at once")
    parser.add_argument("--cache-blocks", type=int, default=2048)
    arguments = parser.parse_args()
    speed = Speed(instant=arguments.instant, cache_blocks=arguments.cache_blocks)
    uvloop.run(serve([int(port) for port in arguments.ports.split(",")], speed))


if __name__ == "__main__":
    main()
