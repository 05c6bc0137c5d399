"""Writes images of buildah's overlay storage to standard output as one OCI archive, without what the reader has already.

`buildah push` cannot do that: to an archive it writes, and compresses, all 6 GB of the engine for a change of one line of
its code. Not a general exporter: it reads the layout of containers/storage as Debian 12 has it, and checks every digest.

usage: stream.py STORAGE KNOWN NAME=IMAGE...    KNOWN: a file with one digest per line; IMAGE: id of the image to be NAME
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

CONFIG = "application/vnd.oci.image.config.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
FILE, SEGMENT = 1, 2  # kinds of a tar-split entry
CHUNK_BYTES = 1 << 20

Fields = dict[str, Any]


class Layer:
    """One layer as the bytes of its tar file: tar-split's record of headers and padding around the files of `diff`."""

    def __init__(self, storage: Path, record: Fields) -> None:
        self.digest: str = record["diff-digest"]
        self.size_bytes: int = record["diff-size"]
        self._files = storage / "overlay" / record["id"] / "diff"
        self._record = storage / "overlay-layers" / f"{record['id']}.tar-split.gz"

    def descriptor(self) -> Fields:
        return {"mediaType": LAYER, "digest": self.digest, "size": self.size_bytes}

    def chunks(self) -> Iterator[bytes]:
        """Raises ValueError when the bytes are not those of the digest."""
        seen = hashlib.sha256()
        for chunk in self._chunks():
            seen.update(chunk)
            yield chunk
        if f"sha256:{seen.hexdigest()}" != self.digest:
            raise ValueError(f"{self._files} no longer has the content of {self.digest}")

    def _chunks(self) -> Iterator[bytes]:
        with gzip.open(self._record, "rt") as lines:
            for entry in map(json.loads, lines):
                if entry["type"] == SEGMENT:
                    yield base64.b64decode(entry["payload"])
                elif entry["type"] == FILE and entry.get("size"):
                    with self._files.joinpath(_name(entry)).open("rb") as content:
                        while chunk := content.read(CHUNK_BYTES):
                            yield chunk


class Chunks(io.RawIOBase):
    """An iterator of bytes as a file that tarfile can read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size and (chunk := next(self._chunks, b"")):
            self._rest += chunk
        head, self._rest = self._rest[:size], self._rest[size:]
        return head


def main(storage: Path, known: set[str], images: dict[str, str], out: BinaryIO) -> None:
    """`images`: name -> id. Layers and files of `known` digests are left out; the archive still names them."""
    records = {each["id"]: each for each in json.loads(_read(storage / "overlay-layers" / "layers.json"))}
    tops = {
        each["id"]: each["layer"] for each in json.loads(_read(storage / "overlay-images" / "images.json"))
    }
    manifests = []
    with tarfile.open(fileobj=out, mode="w|") as archive:
        for name, image in images.items():
            layers = [Layer(storage, record) for record in _chain(records, tops[image])]
            config = _read(storage / "overlay-images" / image / _big_data(f"sha256:{image}"))
            for layer in layers:
                if layer.digest not in known:
                    _add(archive, layer.digest, layer.size_bytes, layer.chunks())
                    known.add(layer.digest)
            fields = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _blob(archive, config) | {"mediaType": CONFIG},
                "layers": [layer.descriptor() for layer in layers],
            }
            manifest = _blob(archive, json.dumps(fields).encode()) | {"mediaType": MANIFEST}
            manifests.append(manifest | {"annotations": {"org.opencontainers.image.ref.name": name}})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        _file(archive, "index.json", json.dumps(index).encode())
        _file(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')


def _chain(records: dict[str, Fields], top: str) -> list[Fields]:
    """Layers from the lowest to the highest."""
    chain: list[Fields] = []
    layer: str | None = top
    while layer:
        chain.insert(0, records[layer])
        layer = records[layer].get("parent")
    return chain


def _blob(archive: tarfile.TarFile, content: bytes) -> Fields:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    _add(archive, digest, len(content), iter([content]))
    return {"digest": digest, "size": len(content)}


def _add(archive: tarfile.TarFile, digest: str, size_bytes: int, chunks: Iterator[bytes]) -> None:
    entry = tarfile.TarInfo(f"blobs/{digest.replace(':', '/')}")
    entry.size = size_bytes
    content = Chunks(chunks)
    archive.addfile(entry, content)
    if content.read(1):
        raise ValueError(f"{digest} is longer than its record says")


def _file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _big_data(key: str) -> str:
    """How containers/storage names the file of a key that is no plain word."""
    return "=" + base64.b64encode(key.encode()).decode()


def _name(entry: Fields) -> str:
    if "name" in entry:
        return str(entry["name"]).lstrip("/")
    return base64.b64decode(entry["name_raw"]).decode(errors="surrogateescape").lstrip("/")


def _read(path: Path) -> bytes:
    return path.read_bytes()


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        set(Path(sys.argv[2]).read_text().split()),
        dict(argument.split("=", 1) for argument in sys.argv[3:]),
        sys.stdout.buffer,
    )
