"""What all stores that speak HTTP share: patience with a connection, bytes from an offset, what a status means."""

from __future__ import annotations

from collections.abc import Generator, Mapping

import httpx

from shoal_engine.sources.remote import BrokenTransfer, FetchError, RemoteFile

TIMEOUT = httpx.Timeout(
    30.0, connect=10.0
)  # seconds; without a byte for so long, a connection counts as broken
PASSING = {408, 425, 429}  # and every 5xx


def new_client(headers: Mapping[str, str], auth: httpx.Auth | None = None) -> httpx.Client:
    """Follows redirects, and keeps an Authorization header from other hosts while doing so."""
    identity = {"User-Agent": "shoal", "Accept-Encoding": "identity"}  # Range counts the bytes as stored
    return httpx.Client(headers={**identity, **headers}, auth=auth, timeout=TIMEOUT, follow_redirects=True)


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
    """Nothing for a success; FetchError for what will not change, with `hint` if it is about access; BrokenTransfer
    for what may.
    """
    code = response.status_code
    if response.is_success:
        return
    if code in PASSING or code >= 500:
        asked = response.headers.get("Retry-After", "")
        raise BrokenTransfer(
            f"{response.url.host} answered {code}", float(asked) if asked.isdigit() else None
        )
    if code in (401, 403):
        raise FetchError(f"{what} is private, gated or does not exist (HTTP {code}): {hint}")
    if code == httpx.codes.NOT_FOUND:
        raise FetchError(f"{what} does not exist (HTTP 404)")
    raise FetchError(f"{response.url.host} answered {code} for {what}")


def words(error: httpx.HTTPError) -> str:
    """Some of httpx's errors have no text."""
    return str(error) or type(error).__name__
