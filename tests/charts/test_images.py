"""The images' recipes: pinned by hash, no root, no more in them than the program needs. Builds nothing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROGRAMS = ("operator", "router", "engine")
programs = pytest.mark.parametrize("program", PROGRAMS)


@programs
def test_the_lock_fits_pyproject(program: str) -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", _lock(program), re.MULTILINE))
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"][program]
    for requirement in map(Requirement, wanted):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


@programs
def test_every_package_has_a_hash(program: str) -> None:
    packages = re.split(r"^(?=[A-Za-z])", _lock(program), flags=re.MULTILINE)[1:]
    assert packages
    assert all("--hash=sha256:" in package for package in packages)


@programs
def test_the_program_runs_as_nobody_on_a_pinned_base(program: str) -> None:
    text = _dockerfile(program)
    last = text.rpartition("\nFROM ")[2]
    assert last.startswith("${BASE}\n")
    assert re.search(r"^USER 65532:65532$", last, re.MULTILINE)
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    assert all(re.search(r":\d+\.\d+\.\d+", image) for image in arguments.values())
    assert {image.strip("${}") for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE)} == set(arguments)
    assert "--require-hashes" in text


@programs
def test_only_the_engine_carries_a_compiler(program: str) -> None:
    last = _dockerfile(program).rpartition("\nFROM ")[2]
    assert ("gcc" in last) == (program == "engine")
    assert ("apt-get" in last) == (program == "engine")


@programs
def test_what_is_copied_exists(program: str) -> None:
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", _dockerfile(program), re.MULTILINE)
    assert copies
    assert all((ROOT / path).exists() for line in copies for path in line.split())


def _dockerfile(program: str) -> str:
    return (ROOT / program / "Dockerfile").read_text()


def _lock(program: str) -> str:
    return (ROOT / program / "requirements.txt").read_text()
