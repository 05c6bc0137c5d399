"""What all stores that speak HTTP share: patience with a connection, bytes from an offset, what a status means."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import NoReturn

import httpx

from shoal_engine.sources.remote import BrokenTransfer, FetchError, RemoteFile

SILENCE_S = 30.0  # without a byte for so long, a connection counts as broken
CONNECT_S = 10.0
PASSING = {408, 425, 429}  # and every 5xx


def new_client(headers: Mapping[str, str], auth: httpx.Auth | None = None) -> httpx.Client:
    """Follows redirects, and keeps an Authorization header from other hosts while doing so."""
    identity = {"User-Agent": "shoal", "Accept-Encoding": "identity"}  # Range counts the bytes as stored
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    return httpx.Client(headers={**identity, **headers}, auth=auth, timeout=timeout, follow_redirects=True)


def ranged(client: httpx.Client, file: RemoteFile, offset: int, hint: str) -> Generator[bytes, None, None]:
    """The bytes from `offset`; a server that knows no Range sends all, and the beginning is dropped."""
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    try:
        with client.stream("GET", file.address, headers=headers) as response:
            refuse_failure(response, file.name, hint)
            skip = 0 if response.status_code == httpx.codes.PARTIAL_CONTENT else offset
            for chunk in response.iter_raw():
                if rest := chunk[skip:]:
                    yield rest
                skip = max(0, skip - len(chunk))
    except httpx.HTTPError as error:
        raise BrokenTransfer(f"{file.name}: {words(error)}") from error


def refuse_failure(response: httpx.Response, what: str, hint: str) -> None:
    """refuse_status() for an answer of httpx; nothing for a success."""
    if not response.is_success:
        asked = response.headers.get("Retry-After", "")
        refuse_status(response.status_code, what, response.url.host, hint, asked)


def refuse_status(code: int, what: str, store: str, hint: str, asked: str = "") -> NoReturn:
    """FetchError for what will not change, with `hint` if it is about access; BrokenTransfer for what may.

    `asked` is the answer's Retry-After.
    """
    if code in PASSING or code >= 500:
        raise BrokenTransfer(f"{store} answered {code}", float(asked) if asked.isdigit() else None)
    if code in (401, 403):
        raise FetchError(f"{what} is private, gated or does not exist (HTTP {code}): {hint}")
    if code == httpx.codes.NOT_FOUND:
        raise FetchError(f"{what} does not exist (HTTP 404)")
    raise FetchError(f"{store} answered {code} for {what}")


def words(error: httpx.HTTPError) -> str:
    """Some of httpx's errors have no text."""
    return str(error) or type(error).__name__
