"""The house rules that a tool can check. A rule that stands only in CONTRIBUTING is no rule."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from shoal_api.crd import generated_files

ROOT = Path(__file__).parents[1]
PACKAGES = ("crds/shoal_api", "operator/shoal_operator", "engine/shoal_engine", "router/shoal_router")
PRODUCT = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
IDS = [str(file.relative_to(ROOT)) for file in PRODUCT]

MAX_LINES = 300
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "manager", "helper", "helpers", "misc"}
# Each can run code that a checkpoint or a request brings along.
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.hub.load",
    "os.system",
    "numpy.load",
    "np.load",
    "yaml.load",
}


def test_the_operator_folder_does_not_shadow_the_standard_library():
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_test_folders_are_no_packages():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_generated_files_are_fresh():
    stale = [
        str(path.relative_to(ROOT))
        for path, text in generated_files(ROOT).items()
        if path.read_text() != text
    ]
    assert not stale, f"run `python -m shoal_api.crd` and commit {stale}"


@pytest.mark.parametrize("file", PRODUCT, ids=IDS)
def test_a_module_says_what_it_is(file):
    assert ast.get_docstring(ast.parse(file.read_text())), (
        "begin with a docstring: what it is, and what it is not"
    )


@pytest.mark.parametrize("file", PRODUCT, ids=IDS)
def test_a_module_is_named_after_what_is_in_it(file):
    assert not NAMES_THAT_SAY_NOTHING & set(file.stem.lower().split("_"))


@pytest.mark.parametrize("file", PRODUCT, ids=IDS)
def test_nothing_unpickles_or_evaluates(file):
    tree = ast.parse(file.read_text())
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {
        (node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not FORBIDDEN_IMPORTS & imported
    assert not FORBIDDEN_CALLS & called


def test_no_file_is_too_long_to_read_in_one_go():
    lines = {name: len(file.read_text().splitlines()) for name, file in zip(IDS, PRODUCT, strict=True)}
    long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not long, f"split by what changes together: {long}"
