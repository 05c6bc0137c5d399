"""Fuzz the router's HTTP layer with atheris: do h11 and an engine's parser read what the router reads?

Every execution is one client's bytes (three of four) or one replica's (the fourth), in up to four pieces. Prints
executions, crashes, hangs and disagreements, and each finding as bytes; exit code 1 if there is any. The seeds
are below and in the tests; a run with the same --seed sees the same inputs. Nothing is written to disk.

    python benchmarks/router/fuzz_http.py --executions 1000000 --seed 1
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from math import inf
from pathlib import Path

import atheris  # type: ignore[import-untyped, unused-ignore]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("build/compiled",) if "--compiled" in sys.argv else ("crds", "router")  # needed before imports
sys.path[:0] = [str(ROOT / folder) for folder in ("", *PACKAGES)]

with atheris.instrument_imports(include=["shoal_router", "h11"]):
    from tests.router.http_oracle import disagreement
    from tests.router.reply_oracle import reply_disagreement

HANG_S = 1.0  # of CPU in one execution: four thousand times what it takes; libFuzzer ends one of a minute
MAX_BYTES = 600
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n"
SEEDS = (
    b"POST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /a HTTP/1.1\r\nHost: h\r\n" + CHUNKED,
    b"GET /a HTTP/1.0\r\nConnection: close, x-a\r\nX-A: b\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    b"POST /a HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nX-Folded: a\r\n b\r\nContent-Length: 2\r\n" + CHUNKED,
    b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nX: y\r\n\r\nabc" * 3,
    b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 44\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n0\r\n\r\n",
)
REPLY_SEEDS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + CHUNKED,
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nabc",
    b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n",
)
TOKENS = (
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b"\0",
        b":",
        b" ",
        b"\t",
        b";",
        b",",
        b"0\r\n\r\n",
        b"3\r\nabc\r\n",
    ),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"chunked", b"gzip", b"identity", b"0x3"),
    *(
        b"Connection: ",
        b"close",
        b"Host: h\r\n",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"RTSP/1.0",
        b"POST ",
        b"HEAD ",
    ),
)


class Tally:
    """What has been seen so far; prints the result when the last execution is over."""

    def __init__(self, executions: int, seconds: float, folder: Path) -> None:
        self.wanted = executions
        self.seconds = seconds
        self.folder = folder
        self.executions = self.accepted = 0
        self.findings = {"crashes": 0, "hangs": 0, "disagreements": 0}
        self.slowest_s = 0.0
        self.began_s = time.perf_counter()

    def execute(self, data: bytes) -> None:
        """One execution. The first four bytes say which side sends, and where the bytes are cut."""
        choice, cuts, message = data[:1], data[1:4], data[4:]
        began_s = time.process_time()
        try:
            check = reply_disagreement if choice and choice[0] & 3 == 3 else disagreement
            found = check(message, [_cut(message, cuts), _between_messages(message)])
        except Exception as error:
            self.found("crashes", f"{data!r}: {error!r}")
        else:
            if found is not None:
                self.found("disagreements", f"{data!r}: {found}")
        took_s = time.process_time() - began_s
        self.slowest_s = max(self.slowest_s, took_s)
        if took_s > HANG_S:
            self.found("hangs", f"{data!r}: {took_s:.1f} s")
        self.executions += 1
        if self.executions == self.wanted or time.perf_counter() - self.began_s > self.seconds:
            self.report()

    def found(self, kind: str, what: str) -> None:
        """Count a finding; print the first ones of a kind."""
        self.findings[kind] += 1
        if self.findings[kind] <= 10:
            print(f"{kind}: {what}", flush=True)

    def report(self) -> None:
        """Print the counts and leave: libFuzzer does not return."""
        took_s = time.perf_counter() - self.began_s
        counts = ", ".join(f"{count} {kind}" for kind, count in self.findings.items())
        rate = self.executions / took_s
        print(
            f"{self.executions} executions in {took_s:.0f} s ({rate:.0f}/s, slowest {self.slowest_s * 1e3:.0f} ms)"
        )
        print(counts, flush=True)
        shutil.rmtree(self.folder)
        os._exit(any(self.findings.values()))


def _cut(data: bytes, cuts: bytes) -> list[bytes]:
    places = sorted({0, len(data), *(cut * (len(data) + 1) // 256 for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)] or [data]


def _between_messages(data: bytes) -> list[bytes]:
    """A piece per message, as clients send them: what a connection repeats is read by a shorter way."""
    return [piece for piece in re.split(rb"(?=POST |GET )", data) if piece] or [data]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=inf, help="end after so long, whatever was done")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--compiled", action="store_true", help="what `make compiled` made; h11 alone guides then"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for index, seed in enumerate((*SEEDS, *REPLY_SEEDS)):
            first = b"\x03" if index >= len(SEEDS) else b"\x00"
            (corpus / f"{index:02}").write_bytes(first + b"\x40\x80\xc0" + seed)
        words = Path(folder, "words")
        quoted = ["".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS]
        words.write_text("".join(f'"{word}"\n' for word in quoted))
        tally = Tally(args.executions, args.seconds, Path(folder))
        flags = [
            f"-seed={args.seed}",
            f"-dict={words}",
            f"-max_len={MAX_BYTES}",
            "-verbosity=0",
            "-timeout=60",
        ]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], tally.execute)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
