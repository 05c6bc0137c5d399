"""Reads YAML files as `kubectl apply --validate=strict` does. The only file here that reads manifests from disk.

Stricter than plain YAML: a key that stands twice is an error. Dates stay text, as they do on the way to the API
server. Each document remembers the lines of its fields, so that messages can point at them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SUFFIXES = (".yaml", ".yml", ".json")


class UnreadableManifest(ValueError):
    """A file that cannot be read or is no YAML; the text says where."""


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document. `value` is its content, `file` and `line` say where it begins."""

    file: str
    line: int
    value: Any
    node: yaml.Node

    def line_of(self, place: Sequence[str | int]) -> int:
        """The line of the field at `place`, or of the nearest one around it that exists."""
        node, line = self.node, self.line
        for part in place:
            if isinstance(node, yaml.MappingNode):
                pair = next(((k, v) for k, v in node.value if k.value == part), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line


class _Loader(yaml.SafeLoader):
    """Like SafeLoader, but knows no dates and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:str" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key "{key.value}" stands twice', key.start_mark
                )
            seen.add(key.value if isinstance(key.value, str) else "")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_manifests(paths: Sequence[str | Path]) -> list[Document]:
    """All documents of files, of the manifests in directories, and of `-` (standard input).

    Raises UnreadableManifest; empty documents are left out.
    """
    return [document for path in paths for file in _files(str(path)) for document in _documents(file)]


def _files(path: str) -> list[str]:
    if path == "-" or not Path(path).is_dir():
        return [path]
    found = sorted(str(file) for file in Path(path).iterdir() if file.suffix in SUFFIXES)
    if not found:
        raise UnreadableManifest(f"{path}: there is no {', '.join(SUFFIXES)} file in this directory")
    return found


def _documents(file: str) -> Iterator[Document]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        for node in yaml.compose_all(text, _Loader):
            _refuse_cycle(node, [], set())
            loader = _Loader("")
            try:
                value = loader.construct_document(node)
            finally:
                loader.dispose()
            if value is not None:
                yield Document(file, node.start_mark.line + 1, value, node)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UnreadableManifest(f"{file}: {error}") from None


def _refuse_cycle(node: yaml.Node, around: list[yaml.Node], done: set[yaml.Node]) -> None:
    """YAML can say that a thing holds itself; no manifest can."""
    if node in around:
        raise yaml.composer.ComposerError(None, None, "an alias refers to what it stands in", node.start_mark)
    if node in done or isinstance(node, yaml.ScalarNode):
        return
    inner = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
    for part in inner:
        _refuse_cycle(part, [*around, node], done)
    done.add(node)
