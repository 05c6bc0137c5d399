"""`shoal bench serve --base-url URL`: latencies and tokens per second of any OpenAI-compatible server, streamed.

Requests come at a rate (Poisson) or all at once, at most so many in flight. The client is one process in Python: near
some thousand tokens a second its own work begins to show.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from shoal_api.exit_codes import ExitCode
from shoal_engine.bench.client import Answer, Target, ask
from shoal_engine.bench.latencies import Summary
from shoal_engine.bench.load import Load, Sized, add_load_flags, arrivals_s, at_least, load_of, requests_of

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How requests come. Without a rate all come at once, without a bound all are in flight."""

    requests_per_s: float | None = None
    max_concurrency: int | None = None


def main(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """0 when every request was answered, else 1. A mistake in `argv` ends the process with 2."""
    args = _parser().parse_args(argv)
    key = args.api_key or environ.get("OPENAI_API_KEY", "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    load = load_of(args, args.seed)
    pace = Pace(requests_per_s=args.request_rate, max_concurrency=args.max_concurrency)

    async def measure() -> Summary:
        async with client_of(args.base_url, headers, args.timeout_s) as http:
            model = args.model or await served_model(http)
            extra = {} if args.no_ignore_eos else {"ignore_eos": True}
            target = Target(model, args.endpoint == "chat", args.temperature, extra)
            return await run(http, target, requests_of(load, args.vocab_size), load, pace)

    try:
        summary = asyncio.run(measure())
    except (httpx.HTTPError, LookupError, ValueError) as error:
        print(f"shoal bench serve: {args.base_url}: {error or type(error).__name__}", file=sys.stderr)
        return ExitCode.UNEXPECTED
    print(summary)
    if args.output_json:
        args.output_json.write_text(json.dumps(summary.record()) + "\n")
    return ExitCode.UNEXPECTED if summary.failures else ExitCode.STOPPED


def client_of(base_url: str, headers: Mapping[str, str], timeout_s: float) -> httpx.AsyncClient:
    """As many connections as there are requests in flight. A base URL may end in /v1, as OpenAI's do."""
    return httpx.AsyncClient(
        base_url=base_url.rstrip("/").removesuffix("/v1"),
        headers=headers,
        timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )


async def served_model(http: httpx.AsyncClient) -> str:
    """The first that the server lists. Raises httpx.HTTPError, and LookupError when it lists none."""
    response = await http.get("/v1/models")
    response.raise_for_status()
    models = response.json()["data"]
    if not models:
        raise LookupError("the server lists no model; name one with --model")
    return str(models[0]["id"])


async def run(
    http: httpx.AsyncClient, target: Target, requests: Sequence[Sized], load: Load, pace: Pace
) -> Summary:
    """One request as a warm-up, which also opens a connection, then all of them."""
    first = requests[0]
    await ask(http, target, Sized(first.prompt[::-1], 1))
    seats = asyncio.Semaphore(pace.max_concurrency) if pace.max_concurrency else None
    started = time.perf_counter()

    async def one(request: Sized, at_s: float) -> Answer:
        await asyncio.sleep(at_s - (time.perf_counter() - started))
        async with AsyncExitStack() as seat:
            if seats is not None:
                await seat.enter_async_context(seats)
            return await ask(http, target, request)

    arrivals = arrivals_s(load, pace.requests_per_s)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(one(request, at_s)) for request, at_s in zip(requests, arrivals, strict=True)
        ]
    return Summary([task.result() for task in tasks], time.perf_counter() - started)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal bench serve",
        description="Latencies and tokens per second of an OpenAI-compatible server.",
        allow_abbrev=False,
    )
    parser.add_argument("--base-url", required=True, metavar="URL", help="Such as http://127.0.0.1:8000.")
    parser.add_argument("--model", metavar="NAME", help="Default: the first that the server lists.")
    parser.add_argument(
        "--endpoint",
        choices=["completions", "chat"],
        default="completions",
        help="completions sends token ids, chat as many words. Default: completions.",
    )
    parser.add_argument(
        "--request-rate", type=_rate, metavar="X", help="Requests per second; unset sends all at once."
    )
    parser.add_argument(
        "--max-concurrency",
        type=at_least(1),
        metavar="N",
        help="Most requests in flight; unset sets no limit.",
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="Default: 0.")
    parser.add_argument(
        "--no-ignore-eos", action="store_true", help="Let answers end early; for servers without ignore_eos."
    )
    parser.add_argument(
        "--vocab-size",
        type=at_least(2),
        default=10_000,
        metavar="N",
        help="Token ids lie below. Default: 10000.",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Of prompts and arrivals. Default: 0."
    )
    parser.add_argument("--api-key", default="", metavar="KEY", help="Default: $OPENAI_API_KEY.")
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=600.0,
        metavar="X",
        help="Longest silence of a server. Default: 600.",
    )
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="Write the figures there as well.")
    add_load_flags(parser, num_prompts=100, input_len=256, output_len=128)
    return parser


def _rate(text: str) -> float:
    value = float(text)
    if not value > 0.0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value
