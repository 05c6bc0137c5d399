"""Where a model lies once it is fetched: the operator, which mounts it, and `shoal fetch`, which writes it, agree here.

Pure: it reads neither disk nor network.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final
from urllib.parse import unquote, urlsplit

from shoal_api.names import MODELS_DIR, SOURCE_DIR

FETCHED_SCHEMES: Final = ("hf", "s3", "oci")
DEFAULT_REVISION: Final = "main"
_DIGEST_CHARS = 16
_READABLE_CHARS = 80


def is_fetched(uri: str) -> bool:
    """Whether the model-loader has to bring it; file:// and pvc:// are there already."""
    return urlsplit(uri).scheme in FETCHED_SCHEMES


def cache_path(uri: str, revision: str | None = None) -> str:
    """The one directory below the cache that holds `uri` at `revision`: READABLE-DIGEST, always one level deep.

    No revision of an hf:// model is main. Two uris never share a directory.
    """
    if revision is None and urlsplit(uri).scheme == "hf":
        revision = DEFAULT_REVISION
    digest = hashlib.sha256(f"{uri}\n{revision or ''}".encode()).hexdigest()[:_DIGEST_CHARS]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", uri.partition("://")[2]).strip("-")
    return f"{readable[:_READABLE_CHARS].strip('-')}-{digest}".lstrip("-")


def model_path(uri: str, revision: str | None = None) -> str:
    """What a pod's `shoal serve` gets for `uri`.

    file:// is the path as it is; pvc://CLAIM/PATH lies in the claim, mounted at SOURCE_DIR/CLAIM; all else is the
    folder MODELS_DIR/cache_path, which for a uri of one .gguf file holds that file alone.
    """
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.scheme == "file":
        return path
    if parts.scheme == "pvc":
        return f"{SOURCE_DIR}/{parts.netloc}{path}".rstrip("/")
    return f"{MODELS_DIR}/{cache_path(uri, revision)}"
