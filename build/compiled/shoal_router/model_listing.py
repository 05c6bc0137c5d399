"""What a replica's /v1/models says. What follows from it is models.py's."""

from __future__ import annotations

import msgspec


class _Listing(msgspec.Struct):
    data: list[msgspec.Raw] = []


class _Entry(msgspec.Struct):
    id: str


_decode_listing = msgspec.json.Decoder(_Listing).decode
_decode_entry = msgspec.json.Decoder(_Entry).decode


def read_listing(body: bytes) -> tuple[tuple[str, bytes], ...]:
    """Ids and JSON objects of a /v1/models reply. Raises msgspec.MsgspecError when it is none."""
    return tuple((_decode_entry(raw).id, bytes(raw)) for raw in _decode_listing(body).data)
