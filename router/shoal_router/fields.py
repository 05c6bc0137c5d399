"""The fields of a request's body that routing needs. Only these are decoded; the body goes on as it came.

What they mean is prompt.py's.
"""

from __future__ import annotations

from typing import Final

import msgspec

from shoal_router.errors import BadRequest
from shoal_router.nesting import MOST_LEVELS, too_deep

ABSENT: Final = msgspec.Raw(b"")


class Fields(msgspec.Struct, gc=False):
    """The fields of a body that routing needs; all else is skipped."""

    model: str | None = None
    stream: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    cache_salt: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT


_decode: Final = msgspec.json.Decoder(Fields).decode


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
