"""`shoal bench offline MODEL`: requests and tokens per second of an engine in this process, no HTTP and no text.

With `--random-weights CONFIG.json` no model is needed, only what describes its shape.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shoal_api.exit_codes import ExitCode
from shoal_api.flags import OptionError, add_flags, from_args
from shoal_api.options import ModelOptions
from shoal_engine.bench.load import Load, Sized, add_load_flags, load_of, requests_of
from shoal_engine.errors import EngineError, InvalidRequest, ModelLoadError

if TYPE_CHECKING:
    from shoal_engine.llm import LLM

WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of one run; cached tokens are those of prompts that the prefix cache held."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    seconds: float

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds

    @property
    def total_tokens_per_s(self) -> float:
        return (self.prompt_tokens + self.output_tokens) / self.seconds

    @property
    def output_tokens_per_s(self) -> float:
        return self.output_tokens / self.seconds

    def record(self) -> dict[str, float]:
        rates = ("requests_per_s", "total_tokens_per_s", "output_tokens_per_s")
        return {**asdict(self), **{name: getattr(self, name) for name in rates}}

    def __str__(self) -> str:
        cached = self.cached_tokens / self.prompt_tokens
        return (
            f"requests/s      {self.requests_per_s:12,.2f}\n"
            f"total tokens/s  {self.total_tokens_per_s:12,.1f}\n"
            f"output tokens/s {self.output_tokens_per_s:12,.1f}\n"
            f"{self.requests} requests, {self.prompt_tokens} prompt tokens ({cached:.0%} cached), "
            f"{self.output_tokens} output tokens in {self.seconds:.2f} s"
        )


def main(argv: Sequence[str]) -> int:
    """0; MODEL or UNEXPECTED with a line on stderr. A mistake in `argv` ends the process with 2."""
    parser = argparse.ArgumentParser(
        prog="shoal bench offline", description="Tokens per second of a model in this process."
    )
    parser.add_argument(
        "--random-weights",
        type=Path,
        metavar="CONFIG.json",
        help="A shape instead of MODEL; weights are random.",
    )
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="Default: 1.")
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="Write the figures there as well.")
    add_load_flags(parser, num_prompts=100, input_len=1024, output_len=128)
    add_flags(parser, ModelOptions)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        options = _options(parser, args, Path(folder))
        try:
            found = run(options, load_of(args, options.seed), args.temperature)
        except ModelLoadError as error:
            print(f"shoal bench offline: {error}", file=sys.stderr)
            return ExitCode.MODEL
        except InvalidRequest as error:
            parser.error(str(error))
        except EngineError as error:
            print(f"shoal bench offline: {error}", file=sys.stderr)
            return ExitCode.UNEXPECTED
    print(found)
    if args.output_json:
        args.output_json.write_text(json.dumps(found.record()) + "\n")
    return ExitCode.STOPPED


def run(options: ModelOptions, load: Load, temperature: float) -> Throughput:
    """Load the model, warm it up with one request, then time all of `load` at once.

    Raises ModelLoadError, and EngineError for a load that the model cannot serve.
    """
    from shoal_engine import LLM

    llm = LLM(**options.model_dump(exclude_unset=True))
    ready = llm.engine.ready
    print(
        f"{options.model} on {ready.device}, {ready.dtype}, {ready.num_blocks} blocks of {ready.block_tokens}"
    )
    requests = requests_of(load, ready.vocab_size)
    warm_up = Load(num_prompts=1, input_len=load.input_len, output_len=WARM_UP_TOKENS, seed=load.seed + 1)
    _generate(llm, requests_of(warm_up, ready.vocab_size), temperature)
    return _generate(llm, requests, temperature)


def _generate(llm: LLM, requests: Sequence[Sized], temperature: float) -> Throughput:
    from shoal_engine import SamplingParams

    params = [
        SamplingParams(
            temperature=temperature, max_tokens=request.output_tokens, ignore_eos=True, detokenize=False
        )
        for request in requests
    ]
    started = time.perf_counter()
    results = llm.generate(
        [{"prompt_token_ids": request.prompt} for request in requests], params, progress=sys.stderr.isatty()
    )
    seconds = time.perf_counter() - started
    completions = [result.outputs[0] for result in results]
    for completion in completions:
        if completion.error is not None:
            raise EngineError(completion.error)
    return Throughput(
        requests=len(results),
        prompt_tokens=sum(len(result.prompt_token_ids) for result in results),
        cached_tokens=sum(result.num_cached_tokens for result in results),
        output_tokens=sum(len(completion.token_ids) for completion in completions),
        seconds=seconds,
    )


def _options(parser: argparse.ArgumentParser, args: argparse.Namespace, folder: Path) -> ModelOptions:
    """Those of the command line; a shape alone becomes a model in `folder`."""
    if args.random_weights is not None:
        if hasattr(args, "model"):
            parser.error("--random-weights stands instead of MODEL; give one of them")
        try:
            shutil.copyfile(args.random_weights, folder / "config.json")
        except OSError as error:
            parser.error(f"--random-weights {args.random_weights}: {error.strerror}")
        args.model, args.load_format = str(folder), "dummy"
    try:
        return from_args(args, ModelOptions)
    except OptionError as error:
        parser.error(str(error))
