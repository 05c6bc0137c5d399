"""`shoal validate`: what the API server and the operator would say of a manifest, without a cluster.

The checks are spec.py (schema), rules.py (CEL) and acceptance.py (operator); here they are run and printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shoal_api.acceptance import rejections
from shoal_api.manifests import Document, UnreadableManifest, read_manifests
from shoal_api.names import GROUP, KIND
from shoal_api.problems import Problem
from shoal_api.spec import InvalidManifest, LLMDeployment


def check(manifest: Any) -> list[Problem]:
    """Everything wrong with one manifest; empty when it would be accepted and run."""
    if invalid := invalidities(manifest):
        return invalid
    return [
        replace(each.problem, message=f"{each.problem.message} (SpecAccepted=False, {each.reason})")
        for each in rejections(LLMDeployment.parse(manifest))
    ]


def invalidities(manifest: Any) -> list[Problem]:
    """What makes it no LLMDeployment at all, on a cluster or elsewhere; the API server would refuse it."""
    if not isinstance(manifest, dict):
        return [Problem((), "a manifest is a mapping with apiVersion, kind, metadata and spec")]
    missing = [Problem((key,), "is required") for key in ("apiVersion", "kind") if key not in manifest]
    try:
        LLMDeployment.parse(manifest)
    except InvalidManifest as error:
        return missing + error.problems
    return missing


def concerns_us(manifest: Any) -> bool:
    """Whether a document is an LLMDeployment, or was meant to be one."""
    if not isinstance(manifest, dict):
        return True
    return manifest.get("kind") in (KIND, None) or str(manifest.get("apiVersion")).startswith(GROUP)


def main(argv: Sequence[str] | None = None) -> int:
    """0: all valid; 1: something is not; 2: a file cannot be read."""
    parser = argparse.ArgumentParser(prog="shoal validate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "-f", "--file", nargs="+", action="extend", required=True, metavar="FILE",
        help="manifest, directory of manifests, or - for standard input",
    )  # fmt: skip
    try:
        documents = read_manifests(parser.parse_args(argv).file)
    except UnreadableManifest as error:
        print(f"shoal validate: {error}", file=sys.stderr)
        return 2
    ours = [document for document in documents if concerns_us(document.value)]
    for document in documents:
        if document not in ours:
            print(f"{document.file}:{document.line}: {document.value['kind']}: not looked at")
    if not ours:
        print("shoal validate: no LLMDeployment in these files", file=sys.stderr)
        return 1
    return max([_report(document) for document in ours])


def _report(document: Document) -> int:
    problems = check(document.value)
    for problem in sorted(problems, key=lambda problem: document.line_of(problem.place)):
        print(f"{document.file}:{document.line_of(problem.place)}: {problem}")
    if problems:
        return 1
    deployment = LLMDeployment.parse(document.value)
    print(f"{document.file}:{document.line}: {KIND} {deployment.name}: valid")
    if deployment.pods_per_replica > 1:
        print(f"  note: {deployment.pods_per_replica} pods per replica need LeaderWorkerSet in the cluster")
    return 0


if __name__ == "__main__":
    sys.exit(main())
