"""Logprobs of prompt tokens, gathered chunk by chunk for the requests that ask. Computes rows in bounded pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal_engine.logprobs import prompt_logprobs, rows_per_chunk
from shoal_engine.messages import TokenLogprobs
from shoal_engine.plan import Chunk, Plan
from shoal_engine.request import Request
from shoal_engine.runner import Runner


class PromptScores:
    """Per request: a None for the first token, which nothing predicts, then one entry per prompt token."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._found: dict[str, list[TokenLogprobs | None]] = {}

    def score(self, plan: Plan, hidden: Tensor) -> None:
        """Score the prompt tokens that follow a computed one. hidden [T, H] in plan order. Raises EngineError on NaN."""
        at = 0
        for chunk in plan.chunks:
            if chunk.request.needs_prompt_logits:
                self._score_chunk(chunk, hidden[at : at + chunk.count])
            at += chunk.count

    def take(self, request: Request) -> list[TokenLogprobs | None] | None:
        """What was found, once; None for a request that did not ask."""
        return self._found.pop(request.id, None)

    def forget(self, request_id: str) -> None:
        self._found.pop(request_id, None)

    def _score_chunk(self, chunk: Chunk, hidden: Tensor) -> None:
        request, start = chunk.request, chunk.start
        if start == 0:  # also when a preempted request starts again
            self._found[request.id] = [None]
        count = min(chunk.count, request.num_prompt_tokens - start - 1)
        following = torch.tensor(
            request.token_ids[start + 1 : start + 1 + count], dtype=torch.int64, device=hidden.device
        )
        piece = rows_per_chunk(self._runner.vocab_size)
        for i in range(0, count, piece):
            logits = self._runner.logits(hidden[i : min(i + piece, count)])
            scores = prompt_logprobs(logits, following[i : i + piece], request.params.prompt_logprobs or 0)
            self._found[request.id] += scores
