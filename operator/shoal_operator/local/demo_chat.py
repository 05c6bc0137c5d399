"""The demo's conversation: two questions under one system prompt, and what their answers must show."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

ANSWER_TIMEOUT_S = 120.0

# Long enough to fill several 16-token blocks, which the second question then finds in the cache.
SYSTEM_PROMPT = """\
You answer customers of Bell & Barnacle, a small shop for sailing gear in the harbour of Port Ostrel. Be \
friendly, answer in one or two short sentences, and rely only on these rules of the house. Opening hours: \
Tuesday to Saturday from nine in the morning to six in the evening; the shop is closed on Sunday and \
Monday. Returns: unused goods come back within thirty days with the receipt, and the money goes back to \
the card that paid. Rope that has been cut to length cannot be returned. Delivery: parcels leave on the \
next working day, cost four euros, and are free above sixty euros; anchors and anything else above twenty \
kilograms must be collected in the shop. Repairs: torn sails are mended in about ten days, and in the \
racing season in three weeks; an estimate costs nothing. Warranty: life jackets carry five years, \
everything else two. Lessons: knots are taught for free on the first Saturday of each month at ten."""
QUESTIONS = ("On which days is the shop closed?", "Can I return rope that has been cut?")


@dataclass(frozen=True, slots=True)
class Answer:
    """One chat completion, and what the router and the engine say of how it was served."""

    text: str
    replica: str
    prompt_tokens: int
    cached_tokens: int
    seconds: float


def find_fault(first: Answer, second: Answer) -> str | None:
    """What two answers under one system prompt must not show; None if they are as they should be."""
    if not first.text.strip() or not second.text.strip():
        return "an answer is empty"
    if not first.replica or first.replica != second.replica:
        return (
            f"replica {first.replica!r} and then {second.replica!r} answered; it should be one and the same"
        )
    if second.cached_tokens == 0:
        return f"{second.replica} took no token of the second prompt from its cache"
    return None


def ask(client: httpx.Client, model: str, question: str) -> Answer:
    """One greedy chat request through the router. Raises httpx.HTTPError if it is refused."""
    start_s = time.monotonic()
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": 48, "temperature": 0}
    reply = client.post("/v1/chat/completions", json=body)
    if reply.is_error:
        raise httpx.HTTPStatusError(
            f"{reply.status_code} {reply.text}", request=reply.request, response=reply
        )
    completion = reply.json()
    usage = completion["usage"]
    return Answer(
        text=completion["choices"][0]["message"]["content"],
        replica=reply.headers.get("x-shoal-replica", ""),
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        seconds=time.monotonic() - start_s,
    )


def show(question: str, answer: Answer, names: Mapping[str, str]) -> Answer:
    """Prints both, and how the answer was served; `names` is replica address to name."""
    print(f"\n  Q  {question}\n  A  {answer.text.strip()}")
    cached = f"{answer.cached_tokens} of {answer.prompt_tokens} prompt tokens from cache"
    print(
        f"     replica {names.get(answer.replica, answer.replica)}, {cached}, {answer.seconds:.2f} s",
        flush=True,
    )
    return answer
