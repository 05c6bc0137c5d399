"""Renders chat templates in a process of its own. `template_process.py` runs this file; the engine never imports it.

A template is a program that came with a model. Jinja's sandbox keeps it from Python's insides, but not from
using time and memory, so the kernel bounds both: a signal ends this process when one rendering has used its CPU
time, even inside a single call, and allocations beyond the limit fail. It can write no file and start no process.

Frames on stdin and stdout are a 4-byte big-endian length and JSON. The first has the templates and limits and is
answered by {} or an error. Each later one has a template's number and its variables; the answer is {"text": ...}
or {"error": kind, "message": ...} of kind syntax, raised (by the template, for the client), failed, size, memory.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO

from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Reading a template costs more than rendering it and happens once, before any client is there.
COMPILE_CPU_SECONDS = 5.0
_MESSAGE_CHARS = 500


class Raised(TemplateError):
    """The template called raise_exception: its message is for whoever wrote the conversation."""


class GenerationTag(Extension):
    """`{% generation %}` marks what an assistant said, for training; here its body is simply text."""

    tags = {"generation"}  # noqa: RUF012 jinja's interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_say"), [], [], body).set_lineno(line)

    def _say(self, caller: Callable[[], str]) -> str:
        return caller()


def environment() -> Environment:
    """Jinja as chat templates are written for it: transformers' settings and functions."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return made


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML and sorts keys, and a model would see that."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> None:
    raise Raised(str(message))


def render(template: Template, variables: dict[str, Any], max_chars: int) -> dict[str, str]:
    pieces: list[str] = []
    chars = 0
    for piece in template.generate(variables):
        chars += len(piece)
        if chars > max_chars:
            return {"error": "size", "message": f"more than {max_chars} characters"}
        pieces.append(piece)
    return {"text": "".join(pieces)}


def answer(work: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The reply to one frame, whatever happens in it."""
    try:
        return work()
    except TemplateSyntaxError as error:
        return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"[:_MESSAGE_CHARS]}
    except Raised as error:
        return {"error": "raised", "message": str(error)[:_MESSAGE_CHARS]}
    except MemoryError:
        return {"error": "memory", "message": ""}
    except Exception as error:
        return {"error": "failed", "message": f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS]}


def main() -> None:
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    setup = json.loads(_read(source) or b"{}")
    _limit_resources(setup["max_memory_bytes"])
    templates: list[Template] = []

    def compile_all() -> dict[str, str]:
        templates.extend(environment().from_string(text) for text in setup["templates"])
        return {}

    def render_one(frame: bytes) -> dict[str, str]:
        request = json.loads(frame)
        return render(templates[request["template"]], request["variables"], setup["max_chars"])

    _write(sink, _timed(COMPILE_CPU_SECONDS, partial(answer, compile_all)))
    while frame := _read(source):
        _write(sink, _timed(setup["cpu_seconds"], partial(answer, partial(render_one, frame))))


def _timed(cpu_seconds: float, work: Callable[[], dict[str, str]]) -> bytes:
    """The reply as JSON; this process ends where the time does."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    reply = json.dumps(work(), ensure_ascii=False).encode("utf-8", "surrogatepass")
    signal.setitimer(signal.ITIMER_PROF, 0)
    return reply


def _limit_resources(max_memory_bytes: int) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY or most > max_memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (max_memory_bytes, max_memory_bytes))
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))


def _read(source: BinaryIO) -> bytes:
    """One frame; empty at the end, which is when the engine is gone."""
    head = source.read(4)
    return source.read(int.from_bytes(head, "big")) if len(head) == 4 else b""


def _write(sink: BinaryIO, frame: bytes) -> None:
    sink.write(len(frame).to_bytes(4, "big") + frame)
    sink.flush()


if __name__ == "__main__":
    main()
