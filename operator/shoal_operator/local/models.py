"""Where the model of a manifest lies on this machine. Looks at the disk, never at the network.

On a cluster the operator mounts a model into the pod; here it has to be a directory or file that already
exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shoal_operator.local.errors import CannotRun

MOUNT = Path("/models")  # where pods see their models; manifests for both worlds name files below it


@dataclass(frozen=True, slots=True)
class ModelPlaces:
    """`models_dir` stands in for the pods' /models; `hf_cache` is the cache of `hf download`."""

    models_dir: Path
    hf_cache: Path


def hf_cache_dir(environ: Mapping[str, str]) -> Path:
    """The cache directory by Hugging Face's own variables, most specific first."""
    if cache := environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def find_model(uri: str, revision: str | None, places: ModelPlaces) -> Path:
    """The absolute path of `uri`. Raises CannotRun with what to do when it is not on this machine."""
    scheme = urlsplit(uri).scheme
    if scheme == "file":
        return _find_file(uri, places.models_dir)
    if scheme == "hf":
        return _find_in_hf_cache(uri, revision or "main", places.hf_cache)
    raise CannotRun(f"{uri}: `shoal up` serves file:// and hf:// models; download it and use file:///PATH")


def _find_file(uri: str, models_dir: Path) -> Path:
    parts = urlsplit(uri)
    path = Path(unquote(parts.path))
    if parts.netloc or not path.is_absolute():
        raise CannotRun(f"{uri}: write an absolute path with three slashes, file:///PATH")
    candidates = [path]
    if path.is_relative_to(MOUNT):
        candidates.append(models_dir.absolute() / path.relative_to(MOUNT))
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = " or ".join(str(candidate) for candidate in candidates)
    raise CannotRun(f"{uri}: there is no {looked}; put the model there or name its folder with --models-dir")


def _find_in_hf_cache(uri: str, revision: str, cache: Path) -> Path:
    """hf://ORG/NAME is a snapshot folder, hf://ORG/NAME/FILE one file in it."""
    parts = urlsplit(uri)
    name, _, file = parts.path.strip("/").partition("/")
    if not parts.netloc or not name:
        raise CannotRun(f"{uri}: write hf://ORGANISATION/NAME")
    repo = cache / f"models--{parts.netloc}--{name}"
    ref = repo / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    path = repo / "snapshots" / commit / file
    if path.exists():
        return path.absolute()
    wanted = f"{parts.netloc}/{name}" + (f" {file}" if file else "")
    raise CannotRun(
        f"{uri} (revision {revision}) is not in the Hugging Face cache {cache}; "
        f"run `hf download {wanted} --revision {revision}` first, or use file:///PATH"
    )
