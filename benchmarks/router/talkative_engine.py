"""An engine that has every answer ready and sends all of it at once: whoever reads slowly has it waiting before him.

python benchmarks/router/talkative_engine.py --port 9101
"""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import httptools
import msgspec
import uvloop
from simulated_http import CHUNK, JSON, Body

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":%d}}\n\ndata: [DONE]\n\n'


class Connection(asyncio.Protocol):
    """One connection to it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        self.body = self.path = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path = url

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        body, self.body = self.body, b""
        if self.path == b"/v1/chat/completions":
            self.stream(msgspec.json.decode(body, type=Body).answer_tokens)
        elif self.path == b"/v1/models":
            self.send(b'{"object":"list","data":[{"id":"sim","object":"model"}]}')
        else:
            self.send(b"{}")

    def send(self, body: bytes) -> None:
        self.transport.write(HEAD % JSON + b"content-length: %d\r\n\r\n%b" % (len(body), body))

    def stream(self, tokens: int) -> None:
        events = [CHUNK % number for number in range(tokens)] + [USAGE % tokens]
        chunks = b"".join([b"%x\r\n%b\r\n" % (len(event), event) for event in events])
        head = HEAD % b"text/event-stream; charset=utf-8" + b"transfer-encoding: chunked\r\n\r\n"
        self.transport.write(head + chunks + b"0\r\n\r\n")


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))
