"""What the router reads in a body: the model, whether it streams, and the bytes that caches are keyed by.

Only these fields are decoded; the body goes on as it came. Whether it is valid is the engine's to say.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from shoal_api.request_prefix import BLOCK_BYTES, hash_request, request_chain_start
from shoal_router.canonical import canonical
from shoal_router.errors import BadRequest
from shoal_router.nesting import MOST_LEVELS, too_deep

# A longer prompt is told apart by its first 64k tokens or so; hashing all of it would hold up other requests'
# streams.
MAX_HASHED_BYTES = 256 * 1024


class Work(Enum):
    """What a path makes an engine do with its text."""

    GENERATE = "generate"  # prefill, where the prefix cache counts, then decode
    EMBED = "embed"  # prefill without a cache
    TOKENIZE = "tokenize"  # nothing that loads the device


class Prompt(msgspec.Struct, frozen=True):
    """One request as the policy sees it. `chain` holds the hashes of its full blocks, first block first."""

    model: str
    stream: bool
    work: Work
    content_bytes: int
    chain: list[int]
    max_tokens: int = 0  # of the answer, as asked for; 0 when it was not said


_ABSENT = msgspec.Raw(b"")


class Fields(msgspec.Struct, gc=False):
    """The fields of a body that routing needs; all else is skipped."""

    model: str | None = None
    stream: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    cache_salt: msgspec.Raw = _ABSENT
    max_tokens: msgspec.Raw = _ABSENT
    max_completion_tokens: msgspec.Raw = _ABSENT


_decode = msgspec.json.Decoder(Fields).decode


def read_fields(body: bytes) -> Fields:
    """Decode a body. Raises BadRequest when it is not a JSON object, nests too deep or its model is not a string."""
    try:
        fields = _decode(body)
    except msgspec.ValidationError as error:
        param = "model" if "$.model" in str(error) else None
        raise BadRequest(f"the body does not fit: {error}", param=param, code="invalid_value") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if too_deep(body):
        raise BadRequest(
            f"the body's JSON may nest {MOST_LEVELS} levels deep; make it flatter", code="json_too_deep"
        )
    return fields


def read_prompt(fields: Fields, model: str, work: Work, tenant_salt: str = "") -> Prompt:
    """The prompt of a decoded body for the model that it resolved to.

    Prompts that begin alike share nothing when the salt of their tenants or their bodies' own differ.
    """
    stream = fields.stream is not _ABSENT and bytes(fields.stream) == b"true"
    if work is not Work.GENERATE:
        size = len(bytes(fields.input)) if work is Work.EMBED else 0
        return Prompt(model, stream, work, size, [])
    # Templates put tools before the messages; in that order equal beginnings stay equal.
    content = canonical(bytes(fields.messages)) if fields.messages is not _ABSENT else bytes(fields.prompt)
    if fields.tools is not _ABSENT:
        content = canonical(bytes(fields.tools)) + content
    salt = "" if fields.cache_salt is _ABSENT else bytes(fields.cache_salt).decode(errors="replace")
    chain = []
    if len(content) >= BLOCK_BYTES:
        start = request_chain_start(model, salt=f"{tenant_salt}\0{salt}" if tenant_salt else salt)
        chain = hash_request(content[:MAX_HASHED_BYTES], start)
    asked = bytes(
        fields.max_tokens if fields.max_completion_tokens is _ABSENT else fields.max_completion_tokens
    )
    max_tokens = int(asked) if asked.isdigit() and len(asked) < 10 else 0
    return Prompt(model, stream, work, len(content), chain, max_tokens)
