"""An engine without a model, for tests of what surrounds one: it answers a prompt with the prompt's own tokens, in turn.

Run as a program it is an engine process. `--options` is JSON: see Script. Some token ids are orders: HANG and so on.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from shoal_engine.cache_tags import CacheTags
from shoal_engine.engine_process import main
from shoal_engine.errors import ModelLoadError, QueueFull
from shoal_engine.messages import Loading, Logprob, Output, Ready, Stats, Submit, TagChanges, TokenLogprobs

# Orders: the first token of a prompt.
HANG, RAISE, DIE, BAD, REFUSE = 49_001, 49_002, 49_003, 49_004, 49_005
EOS = 2
VOCABULARY = 49_152


class Script(msgspec.Struct):
    """How the engine behaves."""

    step_s: float = 0.0
    load_s: float = 0.0
    load_error: str = ""
    max_model_len: int = 2048
    max_queued: int = 1_000
    max_running: int = 1_000
    max_requests: int = 0
    max_cached: int = 1_000
    to_prepare: int = 0  # calls of prepare() that find something to do


@dataclass(slots=True)
class _Running:
    request: Submit
    tokens: Iterator[int]
    made: int = 0


@dataclass(slots=True)
class ScriptedEngine:
    """Each step gives every running request its next token."""

    script: Script
    running: dict[str, _Running] = field(default_factory=dict)
    waiting: deque[Submit] = field(default_factory=deque)
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prepared: int = 0
    tags: CacheTags = field(default_factory=CacheTags)  # of whole prompts, the last `max_cached` of them
    cached: deque[bytes] = field(default_factory=deque)

    @property
    def ready(self) -> Ready:
        return Ready(
            self.script.max_model_len,
            128,
            16,
            VOCABULARY,
            "cpu",
            "float32",
            {"weights": 0.5},
            self.script.max_requests,
        )

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: Submit) -> None:
        if request.prompt_token_ids[0] == REFUSE:
            raise RuntimeError("a bug in add()")
        if len(self.waiting) >= self.script.max_queued:
            raise QueueFull("The queue is full. Try again later.", retry_after_s=7)
        self.waiting.append(request)

    def abort(self, ids: list[str]) -> None:
        for request_id in ids:
            self.running.pop(request_id, None)
        self.waiting = deque(each for each in self.waiting if each.id not in ids)

    def prepare(self) -> bool:
        if self.has_work or self.prepared >= self.script.to_prepare:
            return False
        self.prepared += 1
        time.sleep(0.001)
        return True

    def step(self) -> list[Output]:
        time.sleep(self.script.step_s)
        while self.waiting and len(self.running) < self.script.max_running:
            request = self.waiting.popleft()
            self.prompt_tokens += len(request.prompt_token_ids)
            self._cache(request)
            tokens, given = itertools.cycle(request.prompt_token_ids), len(request.output_token_ids)
            self.running[request.id] = _Running(request, itertools.islice(tokens, given, None), given)
        outputs = [self._advance(each) for each in self.running.values()]
        for output in outputs:
            if output.finish_reason is not None:
                del self.running[output.id]
        self.generation_tokens += len(outputs)
        return outputs

    def stats(self) -> Stats:
        return Stats(
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            step_seconds=0.003,
            step_tokens=max(len(self.running), 1),
        )

    def _cache(self, request: Submit) -> None:
        content = bytes(token % 256 for token in request.prompt_token_ids)
        if content in self.cached:
            self.cached.remove(content)
        self.cached.append(content)
        if request.tags is not None:
            self.tags.attach(content, request.tags.hashes)
        if len(self.cached) > self.script.max_cached:
            self.tags.drop(self.cached.popleft())

    def tag_changes(self) -> TagChanges | None:
        return self.tags.take_changes()

    def _advance(self, running: _Running) -> Output:
        request = running.request
        obey(request.prompt_token_ids[0])
        if request.prompt_token_ids[0] == BAD:
            return Output(request.id, finish_reason="error", error_code="bad_numbers", error_message="NaN.")
        token = next(running.tokens)
        running.made += 1
        params = request.params
        reason, stop = None, None
        if running.made > params.min_tokens and token in params.stop_token_ids:
            reason, stop = "stop", token
        elif token == EOS and not params.ignore_eos:
            reason = "stop"
        elif running.made == params.max_tokens:
            reason = "length"
        return Output(
            request.id,
            [token],
            logprobs=None if params.logprobs is None else [entry(token, params.logprobs)],
            prompt_logprobs=self._of_prompt(running),
            num_cached_tokens=3 if running.made == 1 else None,
            queued_s=0.001 if running.made == 1 else None,
            finish_reason=reason,
            stop_reason=stop,
        )

    def _of_prompt(self, running: _Running) -> list[TokenLogprobs | None] | None:
        k = running.request.params.prompt_logprobs
        if k is None or running.made > 1:
            return None
        return [None, *(entry(token, k) for token in running.request.prompt_token_ids[1:])]


def entry(token: int, k: int) -> TokenLogprobs:
    """`token` as the likeliest, its successors after it; the last one impossible."""
    ranked = [Logprob(token + i, -0.5 * (i + 1), i + 1) for i in range(k)]
    if k > 1:
        ranked[-1] = Logprob(token + k - 1, float("-inf"), k)
    return TokenLogprobs(Logprob(token, -0.5, 1), ranked)


def obey(order: int) -> None:
    if order == HANG:
        time.sleep(3600)
    if order == RAISE:
        raise RuntimeError("a bug in step()")
    if order == DIE:
        os.kill(os.getpid(), signal.SIGKILL)


def load(options: str, progress: Callable[[Loading], None]) -> ScriptedEngine:
    script = msgspec.json.decode(options, type=Script)
    progress(Loading("weights", 50, 100))
    time.sleep(script.load_s)
    if script.load_error:
        raise ModelLoadError(script.load_error)
    progress(Loading("warmup"))
    return ScriptedEngine(script)


def command(script: Script) -> list[str]:
    """The command line of an engine process that follows `script`."""
    return [sys.executable, __file__, f"--options={msgspec.json.encode(script).decode()}"]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], load))
