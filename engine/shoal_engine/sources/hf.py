"""hf://ORG/NAME[/FOLDER-or-FILE]: models on the Hugging Face Hub, through its HTTP API. No files of its own.

Environment: HF_TOKEN for models that are not public, HF_ENDPOINT for a mirror. The official client is not used: its
downloads go into a cache of its own shape, and it cannot say how many bytes it has.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from shoal_engine.sources.remote import BrokenTransfer, FetchError, RemoteFile, wanted
from shoal_engine.sources.transfer import new_client, ranged, refuse_failure, words

ENDPOINT = "https://huggingface.co"


class HubModel:
    """One repository at one revision. Not of the 'hf://ORG/NAME' form: FetchError."""

    def __init__(self, uri: str, revision: str | None, environ: Mapping[str, str]) -> None:
        parts = [part for part in uri.removeprefix("hf://").split("/") if part]
        if len(parts) < 2:
            raise FetchError(f"{uri} names no model; write hf://ORG/NAME")
        self._repository = "/".join(parts[:2])
        self._inside = "/".join(parts[2:])
        self._revision = revision or "main"
        self._endpoint = (environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        token = environ.get("HF_TOKEN", "").strip()
        self._hint = "HF_TOKEN may not read it" if token else "set HF_TOKEN (spec.model.tokenSecretRef)"
        self._client = new_client({"Authorization": f"Bearer {token}"} if token else {})

    def files(self) -> tuple[RemoteFile, ...]:
        """The files at the commit that the revision names now; one commit, even if the branch moves meanwhile."""
        revision = quote(self._revision, safe="")
        url = f"{self._endpoint}/api/models/{self._repository}/revision/{revision}?blobs=true"
        try:
            response = self._client.get(url)
            refuse_failure(response, f"{self._repository} at {self._revision}", self._hint)
            answer = response.json()
            commit, siblings = str(answer["sha"]), {str(one["rfilename"]): one for one in answer["siblings"]}
        except httpx.HTTPError as error:
            raise BrokenTransfer(f"{self._endpoint}: {words(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FetchError(f"{url} did not answer as a Hugging Face Hub does: {error!r}") from error
        return tuple(self._file(path, siblings[path], commit) for path in self._paths(set(siblings)))

    def read(self, file: RemoteFile, offset: int) -> Generator[bytes, None, None]:
        return ranged(self._client, file, offset, self._hint)

    def _paths(self, paths: set[str]) -> list[str]:
        """What the engine reads of the repository, of one folder or of one file of it. FetchError: nothing."""
        if self._inside in paths:
            return [self._inside]
        folder = f"{self._inside}/" if self._inside else ""
        names = {path.removeprefix(folder) for path in paths if path.startswith(folder)}
        chosen = wanted({name for name in names if "/" not in name})
        if not any(name.endswith((".safetensors", ".gguf")) for name in chosen):
            raise FetchError(f"hf://{self._repository}/{folder} has neither .safetensors nor .gguf files")
        return sorted(folder + name for name in chosen)

    def _file(self, path: str, about: Mapping[str, Any], commit: str) -> RemoteFile:
        large = about.get("lfs") or {}
        size = large.get("size", about.get("size"))
        if not isinstance(size, int):
            raise FetchError(f"the Hub tells no size of {path}")
        digest = None
        if "sha256" in large:
            digest = f"sha256:{large['sha256']}"
        elif about.get("blobId"):
            digest = f"git:{about['blobId']}"
        address = f"{self._endpoint}/{self._repository}/resolve/{commit}/{quote(path)}"
        return RemoteFile(path.rpartition("/")[2], size, digest, address)
