"""Where a fetched model lies below a cache directory. Pure: the operator mounts it there, the engine puts it there."""

from __future__ import annotations

import hashlib
import re

DIGEST_CHARACTERS = 16
NAME_CHARACTERS = 64
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def cache_path(uri: str, revision: str | None) -> str:
    """One folder name, such as SmolLM2-135M-0f3a...: the end of the uri for people, the digest for uniqueness."""
    digest = hashlib.sha256(f"{uri}\n{revision or ''}".encode()).hexdigest()[:DIGEST_CHARACTERS]
    name = UNSAFE.sub("-", uri.rstrip("/").rpartition("/")[2]).strip(".-")[:NAME_CHARACTERS]
    return f"{name or 'model'}-{digest}"
