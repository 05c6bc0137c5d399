"""`shoal fetch URI --cache-dir DIR`: bring a model into a cache directory and print its folder. Not its loading."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from shoal_api.exit_codes import SIGNAL_BASE, ExitCode
from shoal_engine.sources.download import Download, Patience
from shoal_engine.sources.progress import Progress, State, served, shown
from shoal_engine.sources.remote import FetchError, Source
from shoal_engine.sources.store import stored


def main(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """0 with the folder on stdout; MODEL when it cannot be had, with one line on stderr; USAGE, ADDRESS."""
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        # At once: what is on disk is never wrong, and as PID 1 of a container nothing else would end us.
        signal.signal(number, lambda signum, frame: os._exit(SIGNAL_BASE + signum))
    progress, console = Progress(), Console(stderr=True)
    try:
        with served(progress, arguments.progress_port):
            return _fetch(arguments, environ, progress, console)
    except OSError as error:
        print(f"shoal fetch: port {arguments.progress_port}: {error.strerror}", file=sys.stderr)
        return ExitCode.ADDRESS


def source_of(uri: str, revision: str | None, environ: Mapping[str, str]) -> Source:
    """Who has the model behind `uri`. Raises FetchError for a scheme that cannot be fetched."""
    scheme, separator, _ = uri.partition("://")
    if scheme == "hf" and separator:
        from shoal_engine.sources.hf import HubModel

        return HubModel(uri, revision, environ)
    if scheme == "oci":
        from shoal_engine.sources.oci import Artifact

        return Artifact(uri)
    if scheme == "s3":
        from shoal_engine.sources.s3 import Bucket

        return Bucket(uri)
    if scheme in ("file", "pvc") or not separator:
        raise FetchError(f"{uri} is read where it lies; there is nothing to fetch")
    raise FetchError(f"{scheme}:// cannot be fetched by this version; it knows hf://, oci:// and s3://")


def _fetch(
    arguments: argparse.Namespace, environ: Mapping[str, str], progress: Progress, console: Console
) -> int:
    uri, revision = arguments.uri, arguments.revision

    def load(folder: Path) -> None:
        progress.enter(State.DOWNLOADING)
        Download(source_of(uri, revision, environ), folder, progress, Patience()).run()
        progress.enter(State.VERIFYING)

    progress.enter(State.DOWNLOADING, "waiting for another process that loads the same model")
    try:
        with shown(progress, console):
            folder = stored(arguments.cache_dir, uri, revision, load)
            progress.enter(State.READY)
    except (FetchError, OSError) as error:
        progress.enter(State.FAILED, str(error))
        print(f"shoal fetch: {error}", file=sys.stderr)
        return ExitCode.MODEL
    print(folder)
    return ExitCode.STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal fetch",
        description="Bring a model into a cache directory; go on where an earlier fetch stopped.",
    )
    parser.add_argument(
        "uri",
        metavar="URI",
        help="hf://ORG/NAME[/FOLDER-OR-FILE], s3://BUCKET[/FOLDER-OR-FILE] or oci://REGISTRY/IMAGE[:TAG|@DIGEST]",
    )
    parser.add_argument("--revision", help="branch, tag or commit; main when unset")
    parser.add_argument(
        "--cache-dir", type=Path, required=True, help="folder that holds one folder per model"
    )
    parser.add_argument("--progress-port", type=int, help="answer GET /progress as JSON here while at work")
    return parser
