"""What routing needs of a request: the model, whether it streams, and the bytes that caches are keyed by.

Which fields of a body say so is fields.py's. Whether they are valid is the engine's to say.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from shoal_api.request_prefix import BLOCK_BYTES, hash_request, request_chain_start
from shoal_router.canonical import canonical
from shoal_router.fields import ABSENT, Fields

# A longer prompt is told apart by its first 64k tokens or so; hashing all of it would hold up other requests'
# streams.
MAX_HASHED_BYTES: Final = 256 * 1024


class Work(Enum):
    """What a path makes an engine do with its text."""

    GENERATE = "generate"  # prefill, where the prefix cache counts, then decode
    EMBED = "embed"  # prefill without a cache
    TOKENIZE = "tokenize"  # nothing that loads the device


class Prompt:
    """One request as the policy sees it. `chain` holds the hashes of its full blocks, first block first."""

    __slots__ = ("chain", "content_bytes", "max_tokens", "model", "stream", "work")

    def __init__(
        self, model: str, stream: bool, work: Work, content_bytes: int, chain: list[int], max_tokens: int = 0
    ) -> None:
        self.model: Final = model
        self.stream: Final = stream
        self.work: Final = work
        self.content_bytes: Final = content_bytes
        self.chain: Final = chain
        self.max_tokens: Final = max_tokens  # of the answer, as asked for; 0 when it was not said


def read_prompt(fields: Fields, model: str, work: Work, tenant_salt: str = "") -> Prompt:
    """The prompt of a decoded body for the model that it resolved to.

    Prompts that begin alike share nothing when the salt of their tenants or their bodies' own differ.
    """
    stream = fields.stream is not ABSENT and bytes(fields.stream) == b"true"
    if work is not Work.GENERATE:
        size = len(bytes(fields.input)) if work is Work.EMBED else 0
        return Prompt(model, stream, work, size, [])
    # Templates put tools before the messages; in that order equal beginnings stay equal.
    content = canonical(bytes(fields.messages)) if fields.messages is not ABSENT else bytes(fields.prompt)
    if fields.tools is not ABSENT:
        content = canonical(bytes(fields.tools)) + content
    salt = "" if fields.cache_salt is ABSENT else bytes(fields.cache_salt).decode(errors="replace")
    chain = []
    if len(content) >= BLOCK_BYTES:
        start = request_chain_start(model, salt=f"{tenant_salt}\0{salt}" if tenant_salt else salt)
        chain = hash_request(content[:MAX_HASHED_BYTES], start)
    asked = bytes(
        fields.max_tokens if fields.max_completion_tokens is ABSENT else fields.max_completion_tokens
    )
    max_tokens = int(asked) if asked.isdigit() and len(asked) < 10 else 0
    return Prompt(model, stream, work, len(content), chain, max_tokens)
