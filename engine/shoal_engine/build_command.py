"""`shoal build MODEL -o DIR`: a model's folder with its kernels compiled, for a GPU that need not be here."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shoal_api.exit_codes import ExitCode
from shoal_api.flags import OptionError, add_flags, from_args
from shoal_api.options import ModelOptions
from shoal_engine.errors import ModelLoadError
from shoal_engine.model_path import local_path

# Compute capability and streaming multiprocessors of GPUs by the name that people call them.
GPUS = {
    "a100": ((8, 0), 108),
    "l4": ((8, 9), 58),
    "l40s": ((8, 9), 142),
    "h100": ((9, 0), 132),
    "h200": ((9, 0), 132),
}


def main(argv: Sequence[str]) -> int:
    """0 with the artifact in place; MODEL with one line on stderr when it cannot be made; USAGE."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        options = from_args(arguments, ModelOptions)
    except OptionError as error:
        parser.error(str(error))
    try:
        return _build(options, arguments.output, arguments.gpu)
    except ModelLoadError as error:
        print(f"shoal build: {error.message}", file=sys.stderr)
    except OSError as error:
        print(f"shoal build: {error}", file=sys.stderr)
    return ExitCode.MODEL


def _build(options: ModelOptions, output: Path, gpu: str | None) -> int:
    model = local_path(options.model)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ModelLoadError(f"{output} exists already; name a new or an empty folder")
    import torch
    import triton
    from triton import knobs

    from shoal_engine.artifact import write_artifact
    from shoal_engine.forks import fork
    from shoal_engine.kernel_cache import build, mark_of
    from shoal_engine.kernels.gpu import GpuKind, kind_of

    if gpu is None and not torch.cuda.is_available():
        raise ModelLoadError(f"there is no GPU here; name the one to build for: --gpu {'|'.join(GPUS)}")
    kind = kind_of(torch.device("cuda", 0)) if gpu is None else GpuKind(*GPUS[gpu])
    with tempfile.TemporaryDirectory() as cache:
        knobs.cache.dir = cache
        _, status = os.waitpid(fork(lambda: build(options, kind, mark_of(options, kind))), 0)
        if status:
            raise ModelLoadError("not all kernels could be compiled; the lines above say which")
        manifest = {
            "shoal": _version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "capability": kind.capability,
            "processors": kind.processors,
            "options": options.model_dump(mode="json", exclude={"model"}, exclude_defaults=True),
        }
        write_artifact(model, output, Path(cache), manifest)
    print(output)
    return ExitCode.STOPPED


def _version() -> str:
    try:
        return version("shoal")
    except PackageNotFoundError:
        return "from source"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal build",
        description="Compile a model's kernels ahead of time, into a folder that `shoal serve` starts from. Give it the"
        " options that the model will be served with.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="new folder for model and kernels"
    )
    parser.add_argument("--gpu", choices=GPUS, help="build for this one; unset: for the one that is here")
    add_flags(parser, ModelOptions)
    return parser


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
