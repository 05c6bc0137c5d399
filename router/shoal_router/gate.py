"""Who may ask, and how much: looks at a request's head, finds its key, and keeps each key's accounts.

Without keys every request passes, and what a client sends as Authorization is the engine's to judge. With keys that
header is for the router alone: an engine sees the router's own key, if it has one for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from shoal_api.names import HEADER_CACHE_SALT
from shoal_router.fair_queue import Claim
from shoal_router.key_watch import KeyWatch
from shoal_router.keys import Key, Keyring, Priority
from shoal_router.prompt import Prompt, Work
from shoal_router.rate_limits import Grant, Meters
from shoal_router.request import Request
from shoal_router.routes import find_route
from shoal_router.usage import AnswerTokens, BytesPerToken, Usage

CLIENT_LEFT: Final = 499  # as proxied.py books it


class Gate:
    """The keys of one router. `file` is empty when there is none; `engine_key` is what engines ask for."""

    def __init__(
        self,
        plain: Iterable[bytes],
        file: str,
        engine_key: str | None,
        *,
        ratios: BytesPerToken,
        answers: AnswerTokens,
        now: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._plain = tuple(map(Key.plain, plain))
        self._credentials = f"authorization: Bearer {engine_key}\r\n".encode() if engine_key else b""
        self._ratios = ratios
        self._answers = answers
        self._onward: dict[str, bytes] = {}
        self._now = now
        self.meters = Meters(now, chance)
        self.keyring = Keyring()
        self.watch = KeyWatch(file, self._set_keys) if file else None
        self._set_keys(())

    def start(self) -> None:
        """Read the file and watch it. Raises KeyFileError."""
        if self.watch is not None:
            self.watch.load()
            self.watch.start()

    async def stop(self) -> None:
        if self.watch is not None:
            await self.watch.stop()

    def vet(self, request: Request) -> None:
        """Refuse a request that may not be sent, before its body comes; else note whose it is.

        Raises PathNotFound, MethodNotAllowed or Unauthorized.
        """
        route = find_route(request)
        keyring = self.keyring
        if keyring.asks:
            if not route.open:
                key = request.key = keyring.find(request.authorization)
                request.tenant = key.tenant
                request.onward = self._onward[key.name]
        else:
            request.onward = self._credentials or request.head.credentials

    def begin(self, request: Request, prompt: Prompt) -> Grant | None:
        """Take a request on its key's account; None when it has none. Raises RateLimited."""
        meter = self.meters.by_name.get(request.key.name) if request.key is not None else None
        if meter is None:  # or no more: keys may change while a body comes
            return None
        return meter.begin(
            self.expected_tokens(prompt) if meter.token_bucket is not None else 0.0, self._now()
        )

    def end(self, grant: Grant, prompt: Prompt, status: int, usage: Usage | None) -> None:
        """The request of a grant has ended. An error took no tokens; for a client that left, anything may have been
        computed.
        """
        if usage is not None:
            tokens = float(usage.prompt_tokens + usage.completion_tokens)
        else:
            tokens = 0.0 if 400 <= status != CLIENT_LEFT else self.expected_tokens(prompt)
        grant.end(tokens, self._now())

    def claim(self, request: Request, prompt: Prompt) -> Claim:
        """What a request asks for while it waits."""
        band = request.key.priority if request.key is not None else Priority.NORMAL
        tokens = max(1.0, self.expected_tokens(prompt))
        return Claim(request.tenant, band, tokens, len(request.body))

    def expected_tokens(self, prompt: Prompt) -> float:
        """Tokens that a request will take, as far as can be said before: its prompt and an answer like others."""
        if prompt.work is Work.TOKENIZE:
            return 0.0
        tokens = self.prompt_tokens(prompt)
        if prompt.work is Work.GENERATE:
            tokens += self._answers.expected(prompt.model, prompt.max_tokens)
        return tokens

    def prompt_tokens(self, prompt: Prompt) -> float:
        """Tokens of a prompt, by its bytes."""
        return prompt.content_bytes / self._ratios.of(prompt.model)

    def _set_keys(self, keys: tuple[Key, ...]) -> None:
        every = (*self._plain, *keys)
        self._onward = {key.name: _salt_line(key) + self._credentials for key in every}
        self.meters.set_keys(keys)
        self.keyring = Keyring(every, asks=bool(self._plain) or self.watch is not None)


def _salt_line(key: Key) -> bytes:
    return f"{HEADER_CACHE_SALT}: {key.cache_salt}\r\n".encode() if key.cache_salt else b""
