"""oci://REGISTRY/IMAGE[:TAG|@DIGEST]: a model as an OCI artifact, one layer per file, named by its annotation.

Not for container images, whose layers are archives: a cluster mounts those itself (spec.cache.type Image). Anonymous:
registries that hand out a token to everybody are served, passwords are not known here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator, Mapping
from typing import Any

import httpx

from shoal_engine.sources.remote import WEIGHTS, BrokenTransfer, FetchError, RemoteFile, wanted
from shoal_engine.sources.transfer import new_client, ranged, refuse_failure, words

REFERENCE = re.compile(r"oci://([^/]+)/([^:@]+?)(?::([^:@/]+))?(?:@(sha256:[0-9a-f]{64}))?$")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")  # plain http, as with every OCI tool
NAME_ANNOTATIONS = ("org.opencontainers.image.title", "org.cncf.model.filepath")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
HINT = "only what everybody may read can be fetched"


class AnonymousToken(httpx.Auth):
    """Gets the token that a registry's 401 points to, and a new one when it has expired."""

    def __init__(self) -> None:
        self._header = ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._header:
            request.headers["Authorization"] = self._header
        response = yield request
        challenge = response.headers.get("WWW-Authenticate", "")
        if response.status_code != httpx.codes.UNAUTHORIZED or not challenge.lower().startswith("bearer "):
            return
        fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        with new_client({}) as client:
            answer = client.get(fields.pop("realm", ""), params=fields)
            refuse_failure(answer, str(request.url), HINT)
        self._header = request.headers["Authorization"] = f"Bearer {_token(answer)}"
        yield request


class Artifact:
    """One artifact of one registry. Not of the form above: FetchError."""

    def __init__(self, uri: str) -> None:
        parts = REFERENCE.match(uri)
        if parts is None:
            raise FetchError(f"{uri} names no artifact; write oci://REGISTRY/IMAGE[:TAG|@DIGEST]")
        registry, image, tag, self._digest = parts.groups()
        scheme = "http" if registry.rpartition(":")[0] in LOOPBACK or registry in LOOPBACK else "https"
        self._uri = uri
        self._base = f"{scheme}://{registry}/v2/{image}"
        self._reference = self._digest or tag or "latest"
        self._client = new_client({"Accept": MANIFEST}, AnonymousToken())

    def files(self) -> tuple[RemoteFile, ...]:
        """The layers that are files of a model."""
        layers = {_name(layer): layer for layer in self._manifest() if _is_a_file(layer)}
        chosen = wanted({name for name in layers if "/" not in name})
        if not any(name.endswith(WEIGHTS) for name in chosen):
            raise FetchError(
                f"{self._uri} has no layer that is a .safetensors or .gguf file;"
                " a container image is served with spec.cache.type Image"
            )
        return tuple(self._file(name, layers[name]) for name in sorted(chosen))

    def read(self, file: RemoteFile, offset: int) -> Generator[bytes, None, None]:
        return ranged(self._client, file, offset, HINT)

    def _manifest(self) -> list[Mapping[str, Any]]:
        """The layers that it lists. A digest in the uri holds for every byte behind it."""
        url = f"{self._base}/manifests/{self._reference}"
        try:
            response = self._client.get(url)
            refuse_failure(response, self._uri, HINT)
            if self._digest and self._digest != f"sha256:{hashlib.sha256(response.content).hexdigest()}":
                raise FetchError(f"{url} answered with something else than what has this digest")
            return [layer for layer in json.loads(response.content)["layers"] if isinstance(layer, dict)]
        except httpx.HTTPError as error:
            raise BrokenTransfer(f"{self._base}: {words(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FetchError(f"{url} is no manifest of an artifact: {error!r}") from error

    def _file(self, name: str, layer: Mapping[str, Any]) -> RemoteFile:
        digest, size = str(layer.get("digest")), layer.get("size")
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest) or not isinstance(size, int):
            raise FetchError(f"{self._uri}: the layer {name} has no sha256 digest or no size")
        return RemoteFile(name, size, digest, f"{self._base}/blobs/{digest}")


def _token(answer: httpx.Response) -> str:
    try:
        fields = answer.json()
        return str(fields.get("token") or fields["access_token"])
    except (ValueError, KeyError, AttributeError) as error:
        raise FetchError(f"{answer.url.host} gave no token: {HINT}") from error


def _name(layer: Mapping[str, Any]) -> str:
    notes = layer.get("annotations") or {}
    return next((str(notes[key]) for key in NAME_ANNOTATIONS if notes.get(key)), "")


def _is_a_file(layer: Mapping[str, Any]) -> bool:
    """As it is, not packed."""
    kind = str(layer.get("mediaType"))
    return bool(_name(layer)) and "tar" not in re.split(r"[.+]", kind) and not kind.endswith(("gzip", "zstd"))
