"""s3://BUCKET[/FOLDER-or-FILE]: models in S3 and stores that speak its protocol. No credentials of its own.

botocore is used because it finds credentials and endpoints as every AWS tool does: environment variables, a service
account's web identity, a node's role; AWS_ENDPOINT_URL for another store, AWS_CA_BUNDLE for its certificate. Where it
finds no credentials, requests go unsigned, as public buckets want them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from typing import Any

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
)
from urllib3.exceptions import HTTPError

from shoal_engine.sources.remote import WEIGHTS, BrokenTransfer, FetchError, RemoteFile, wanted
from shoal_engine.sources.transfer import CONNECT_S, SILENCE_S, refuse_status

CHUNK_BYTES = 1 << 20
CHANGED = "{} was changed while it was loaded; fetch it again"


class Bucket:
    """One folder or object of one bucket. Not of the form above: FetchError."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._bucket, _, inside = uri.removeprefix("s3://").partition("/")
        self._inside = inside.strip("/")
        if not self._bucket:
            raise FetchError(f"{uri} names no bucket; write s3://BUCKET/FOLDER")
        self._client, self._hint = _connected()

    def files(self) -> tuple[RemoteFile, ...]:
        """The object that the uri names, or what an engine reads of the folder; its folders are not looked into."""
        if self._inside.endswith(WEIGHTS):
            head = self._asked(self._client.head_object, Bucket=self._bucket, Key=self._inside)
            return (_file(self._inside, head["ContentLength"], head["ETag"]),)
        folder = f"{self._inside}/" if self._inside else ""
        found = {each["Key"].removeprefix(folder): each for each in self._listed(folder)}
        chosen = wanted(set(found))
        if not any(name.endswith(WEIGHTS) for name in chosen):
            raise FetchError(f"s3://{self._bucket}/{folder} has neither .safetensors nor .gguf files")
        return tuple(
            _file(found[name]["Key"], found[name]["Size"], found[name]["ETag"]) for name in sorted(chosen)
        )

    def read(self, file: RemoteFile, offset: int) -> Generator[bytes, None, None]:
        """Of the very object that was listed: one written over it since is refused."""
        answer = self._asked(
            self._client.get_object,
            Bucket=self._bucket,
            Key=file.address,
            IfMatch=file.version,
            **({"Range": f"bytes={offset}-"} if offset else {}),
        )
        body = answer["Body"]
        try:
            # Not every store of this protocol heeds both headers, and nothing later would find the wrong bytes.
            if answer["ETag"] != file.version:
                raise FetchError(CHANGED.format(f"s3://{self._bucket}/{file.address}"))
            if offset and not answer.get("ContentRange", "").startswith(f"bytes {offset}-"):
                raise FetchError(f"{self._uri}: this store cannot send the rest of {file.name} alone")
            yield from body.iter_chunks(CHUNK_BYTES)
        except (HTTPClientError, IncompleteReadError, HTTPError) as error:
            raise BrokenTransfer(f"{file.name}: {error}") from error
        finally:
            body.close()

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        while True:
            page = self._asked(
                self._client.list_objects_v2, Bucket=self._bucket, Prefix=folder, Delimiter="/", **more
            )
            found += [each for each in page.get("Contents", ()) if each["Key"] != folder]
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _asked(self, call: Callable[..., Any], **arguments: str | None) -> Any:
        """The answer; BrokenTransfer where another try may help, else FetchError."""
        what = f"s3://{self._bucket}/{arguments.get('Key', arguments.get('Prefix', ''))}"
        try:
            return call(**arguments)
        except ClientError as error:
            answer = error.response["ResponseMetadata"]
            code = int(answer["HTTPStatusCode"])
            if code == 412:
                raise FetchError(CHANGED.format(what)) from error
            asked = answer["HTTPHeaders"].get("retry-after", "")
            reason = error.response["Error"].get("Message", "")
            refuse_status(code, what, self._uri, f"{reason}; {self._hint}" if reason else self._hint, asked)
        except (HTTPClientError, EndpointConnectionError, ConnectTimeoutError) as error:
            raise BrokenTransfer(f"{what}: {error}") from error
        except BotoCoreError as error:
            raise FetchError(f"{what}: {error}") from error


def _connected() -> tuple[Any, str]:
    """A client, and what to do if it may not read. FetchError for an environment that botocore cannot read."""
    try:
        session = botocore.session.Session()
        if region := os.environ.get("AWS_REGION"):  # what other AWS tools read, and botocore does not
            session.set_config_variable("region", region)
        known = session.get_credentials() is not None
        config = Config(
            connect_timeout=CONNECT_S,
            read_timeout=SILENCE_S,
            # Download is patient; two who try again would wait for each other's product.
            retries={"total_max_attempts": 1},
            response_checksum_validation="when_required",
            signature_version=None if known else UNSIGNED,
        )
        client = session.create_client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise FetchError(f"the environment's AWS settings: {error}") from error
    if known:
        return client, "these AWS credentials may not read it"
    return client, "set AWS credentials (spec.engine.envFrom, or a service account with a role)"


def _file(key: str, size: int, version: str) -> RemoteFile:
    return RemoteFile(key.rpartition("/")[2], size, None, key, version)
