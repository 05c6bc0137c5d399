"""Replicas whose requests the access log and traces tell of, and what an access log wrote."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from typing import Any

from tests.router.scripted import FAST, LAST_CHUNK, STREAM_HEAD, Received, chunk, reply

USAGE = b'{"usage":{"prompt_tokens":30,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":16}}}'
LOGGED = replace(FAST, access_log=True)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = TRACEPARENT[:-1] + "0"


async def counted(request: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(reply(USAGE))


async def streamed(request: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunk(b"data: {}\n\n"))
    await asyncio.sleep(0.02)
    writer.write(chunk(b"data: %b\n\ndata: [DONE]\n\n" % USAGE) + LAST_CHUNK)


async def dies(request: Received, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


class Lines(io.BytesIO):
    """What an access log wrote, also after it was closed."""

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]
