"""Workloads A to E of design/numbers.md on one GPU with random weights: Shoal, the floor of the card, and vLLM.

    python benchmarks/h200/workloads.py --model 8b [--workloads start,ttft,C,A,B,D,E,offline]
    python benchmarks/h200/workloads.py --model 8b --quantization fp8 --kv-cache-dtype fp8
    python benchmarks/h200/workloads.py --model 0.6b --workloads profile --profile-batches 1 32 256
    python benchmarks/h200/workloads.py --cpu-tiny          # all of it in seconds, without a GPU

Each engine loads once, in a process of its own; one that dies costs the workload it died in, and the others go on in a
new one. vLLM runs beside Shoal where it is installed. Prompts are token ids that never repeat, the prefix cache is on.
A start is a process's whole way from its command line to a first token; "cold" has an empty kernel cache.
With OUT set, every figure with its comparisons is also a line of $OUT/figures.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import one_engine
from cases import CASES
from figures import full_record, table
from processes import Processes
from subjects import SUBJECTS

DEFAULT = "start,ttft,C,A,B,D,E"
ALL = ["start", *CASES, "profile"]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--model", choices=["0.6b", "8b"], default="8b")
    made.add_argument("--workloads", type=_workloads, default=DEFAULT, help=f"of {','.join(ALL)}")
    made.add_argument("--no-vllm", action="store_true", help="also where it is installed")
    made.add_argument("--quantization", choices=["fp8"])
    made.add_argument("--kv-cache-dtype", choices=["fp8"])
    made.add_argument("--max-num-batched-tokens", type=int)
    made.add_argument("--max-num-seqs", type=int)
    made.add_argument("--option", action="append", default=[], metavar="NAME=JSON", help="of LLM(...)")
    made.add_argument("--profile", action="store_true", help="the workload `profile` at the end")
    made.add_argument("--profile-batches", type=int, nargs="+", default=[1, 32, 256])
    made.add_argument("--profile-steps", type=int, default=20)
    made.add_argument("--measure-ceilings", action="store_true", help="floors of this very card")
    made.add_argument("--limit-s", type=float, default=400, help="of one process; figures so far count")
    made.add_argument("--cpu-tiny", action="store_true", help="a tiny model on the CPU, no floors")
    made.add_argument("--child", choices=SUBJECTS, help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str]) -> int:
    """0 when every workload that was asked of Shoal has given its figures."""
    args = parser().parse_args(argv)
    if args.child:
        one_engine.run(args)
        return 0
    wanted = args.workloads.split(",") + ["profile"] * args.profile
    shape = one_engine.shape_of(args)
    print(headline(shape.name, argv), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape.write(folder / "model")
        ours = Processes("shoal", args, argv, folder).figures(wanted)
        peers = []
        if _has_peer(args):
            without_profile = [one for one in wanted if one != "profile"]
            peers = Processes("vllm", args, argv, folder).figures(without_profile)
    print(f"\n{shape.name}{' FP8' * bool(args.quantization)}\n{table(ours, peers)}", flush=True)
    if "OUT" in os.environ:
        with (Path(os.environ["OUT"]) / "figures.jsonl").open("a") as file:
            for figure in [*ours, *peers]:
                print(json.dumps(full_record(figure, peers)), file=file)
    measured = {figure.name.split()[0] for figure in ours}
    return 0 if {*wanted} - {"profile"} <= measured else 1


def headline(model: str, argv: Sequence[str]) -> str:
    """What was measured with which versions, and how to do it again."""
    import torch

    names = ("shoal", "torch", "triton", "vllm")
    versions = ", ".join(f"{name} {_version(name)}" for name in names if _version(name))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{model} on {device}, {versions}\n$ python benchmarks/h200/workloads.py {shlex.join(argv)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "from source" if package == "shoal" else ""


def _workloads(text: str) -> str:
    unknown = set(text.split(",")) - set(ALL)
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no workload {', '.join(sorted(unknown))}; there are {','.join(ALL)}"
        )
    return text


def _has_peer(args: argparse.Namespace) -> bool:
    return not (args.cpu_tiny or args.no_vllm) and find_spec("vllm") is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
