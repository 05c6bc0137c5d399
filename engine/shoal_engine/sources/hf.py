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

ENDPOINT = "https://huggingface.co"
TIMEOUT = httpx.Timeout(
    30.0, connect=10.0
)  # seconds; without a byte for so long, a connection counts as broken
PASSING = {408, 425, 429}  # and every 5xx


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
        self._has_token = bool(token := environ.get("HF_TOKEN", "").strip())
        headers = {"User-Agent": "shoal", "Accept-Encoding": "identity"}  # Range counts the bytes as stored
        if self._has_token:
            headers["Authorization"] = f"Bearer {token}"  # httpx keeps it from other hosts on a redirect
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT, follow_redirects=True)

    def files(self) -> tuple[RemoteFile, ...]:
        """The files at the commit that the revision names now; one commit, even if the branch moves meanwhile."""
        revision = quote(self._revision, safe="")
        url = f"{self._endpoint}/api/models/{self._repository}/revision/{revision}?blobs=true"
        try:
            response = self._client.get(url)
            self._check(response)
            answer = response.json()
            commit, siblings = str(answer["sha"]), {str(one["rfilename"]): one for one in answer["siblings"]}
        except httpx.HTTPError as error:
            raise BrokenTransfer(f"{self._endpoint}: {_words(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FetchError(f"{url} did not answer as a Hugging Face Hub does: {error!r}") from error
        return tuple(self._file(path, siblings[path], commit) for path in self._paths(set(siblings)))

    def read(self, file: RemoteFile, offset: int) -> Generator[bytes, None, None]:
        """The bytes from `offset`; a server that knows no Range sends all, and the beginning is dropped."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with self._client.stream("GET", file.address, headers=headers) as response:
                self._check(response)
                skip = 0 if response.status_code == httpx.codes.PARTIAL_CONTENT else offset
                for chunk in response.iter_raw():
                    if rest := chunk[skip:]:
                        yield rest
                    skip = max(0, skip - len(chunk))
        except httpx.HTTPError as error:
            raise BrokenTransfer(f"{file.name}: {_words(error)}") from error

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

    def _check(self, response: httpx.Response) -> None:
        """Nothing for a success; FetchError for what will not change, BrokenTransfer for what may."""
        code, model = response.status_code, f"{self._repository} at {self._revision}"
        if response.is_success:
            return
        if code in PASSING or code >= 500:
            asked = response.headers.get("Retry-After", "")
            raise BrokenTransfer(
                f"{response.url.host} answered {code}", float(asked) if asked.isdigit() else None
            )
        if code in (401, 403):
            hint = (
                "HF_TOKEN may not read it" if self._has_token else "set HF_TOKEN (spec.model.tokenSecretRef)"
            )
            raise FetchError(f"{model} is private, gated or does not exist (HTTP {code}): {hint}")
        if code == 404:
            raise FetchError(f"{model} does not exist (HTTP 404)")
        raise FetchError(f"{response.url.host} answered {code} for {model}")


def _words(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
