"""A device that computes nothing but remembers, slot by slot, what its KV cache was computed from.

A slot holds the digest of the token prefix that ends there. A step writes all its slots, then reads the whole visible
context of every chunk and compares it with the request's own tokens: any slot that was reused, shared or kept wrongly
shows at once. The next token is a function of that digest, so a request has one right answer however it is scheduled.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from shoal_engine.plan import Chunk, Plan
from shoal_engine.request import Request

VOCABULARY = 11
EOS = 0
BAD = "not a number"  # what a faulty computation leaves behind
GARBAGE = "garbage"  # what a step that did not run to its end leaves behind


def root(request: Request) -> int:
    """What a prefix depends on beside its tokens: the salt must not be shared, the adapter changes the values."""
    return hash((request.cache_salt, request.adapter))


def prefix_digests(request: Request, tokens: Sequence[int]) -> list[int]:
    digests, digest = [], root(request)
    for token in tokens:
        digest = hash((digest, token))
        digests.append(digest)
    return digests


def next_token(request: Request, digest: int, num_output: int) -> int:
    """The token after a prefix; like the real sampler it cannot end the request before min_tokens."""
    token = digest % VOCABULARY
    masked = num_output < request.params.min_tokens
    while masked and token in request.stop_ids:
        token = (token + 1) % VOCABULARY
    return token


def right_answer(request: Request) -> list[int]:
    """The whole output of a request that nothing disturbs."""
    tokens = request.token_ids[: request.num_prompt_tokens]
    output: list[int] = []
    while True:
        token = next_token(request, prefix_digests(request, tokens)[-1], len(output))
        tokens.append(token)
        output.append(token)
        stops = token in request.stop_ids and len(output) > request.params.min_tokens
        if stops or len(tokens) >= request.max_total_tokens:
            return output


@dataclass(frozen=True)
class Launched:
    """A chunk as the device got it when its step was planned."""

    chunk: Chunk
    table: tuple[int, ...]
    host_tokens: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.chunk.start + self.chunk.count


@dataclass
class Launch:
    plan: Plan
    chunks: list[Launched]
    abandoned: bool = False  # an earlier step failed: whatever this one writes is wrong


@dataclass
class ContentDevice:
    block_tokens: int
    window: int | None = None
    slots: dict[tuple[int, int], object] = field(default_factory=dict)
    sampled: dict[tuple[Request, int], int] = field(default_factory=dict)  # (request, position) -> token

    def launch(self, plan: Plan) -> Launch:
        return Launch(
            plan,
            [
                Launched(chunk, tuple(chunk.request.block_ids), tuple(chunk.request.token_ids))
                for chunk in plan.chunks
            ],
        )

    def run(self, launch: Launch, faulty: Collection[str] = ()) -> tuple[list[int], list[str]]:
        """Run a step to its end; chunks of `faulty` requests compute BAD. Returns sampled tokens and bad rows' ids."""
        tokens = {index: self._tokens(chunk) for index, chunk in enumerate(launch.chunks)}
        for index, launched in enumerate(launch.chunks):
            digests = prefix_digests(launched.chunk.request, tokens[index])
            for position in range(launched.chunk.start, launched.end):
                self._write(
                    launched, position, BAD if launched.chunk.request.id in faulty else digests[position]
                )
        while sum(self._spread(launched) for launched in launch.chunks):
            pass  # BAD goes from block to block as far as requests of this step read one another
        output, bad_rows = [], []
        for index, launched in enumerate(launch.chunks):
            bad = self._check_context(launched, tokens[index])
            if launched.chunk.samples:
                token = self._sample(launched, tokens[index])
                output.append(token)
                if bad:
                    bad_rows.append(launched.chunk.request.id)
        return output, bad_rows

    def crash(self, launch: Launch) -> None:
        """The step failed half way."""
        for launched in launch.chunks:
            for position in range(launched.chunk.start, launched.end):
                self._write(launched, position, GARBAGE)

    def read_blocks(self, launched: Launched) -> set[int]:
        """Blocks that a chunk reads or writes."""
        first = self._first_visible(launched.chunk.start)
        return {launched.table[position // self.block_tokens] for position in range(first, launched.end)}

    def _tokens(self, launched: Launched) -> list[int]:
        known = launched.host_tokens
        request = launched.chunk.request
        return [
            known[position] if position < len(known) else self.sampled[request, position]
            for position in range(launched.end)
        ]

    def _sample(self, launched: Launched, tokens: list[int]) -> int:
        request = launched.chunk.request
        digest = prefix_digests(request, tokens)[-1]
        token = next_token(request, digest, len(tokens) - request.num_prompt_tokens)
        self.sampled[request, len(tokens)] = token
        return token

    def _first_visible(self, position: int) -> int:
        return 0 if self.window is None else max(0, position - self.window + 1)

    def _slot(self, launched: Launched, position: int) -> tuple[int, int]:
        block = launched.table[position // self.block_tokens]
        assert block, f"{launched.chunk.request} looks at position {position} through the null block"
        return block, position % self.block_tokens

    def _write(self, launched: Launched, position: int, content: object) -> None:
        self.slots[self._slot(launched, position)] = content

    def _spread(self, launched: Launched) -> bool:
        changed = False
        for position in range(launched.chunk.start, launched.end):
            own = self._slot(launched, position)
            if self.slots[own] != BAD and any(
                self.slots[self._slot(launched, seen)] == BAD
                for seen in range(self._first_visible(position), position)
            ):
                self.slots[own] = BAD
                changed = True
        return changed

    def _check_context(self, launched: Launched, tokens: list[int]) -> bool:
        """Every visible slot holds the request's own prefix, or BAD; True if there is BAD in the last row's context."""
        digests = prefix_digests(launched.chunk.request, tokens)
        for position in range(self._first_visible(launched.chunk.start), launched.end):
            content = self.slots.get(self._slot(launched, position))
            assert content in (digests[position], BAD), (
                f"{launched.chunk.request} reads {content} at {position}"
            )
        return any(
            self.slots[self._slot(launched, position)] == BAD
            for position in range(self._first_visible(launched.end - 1), launched.end)
        )
