"""The `shoal` command finds its programs, and says what to do when it cannot."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from shoal_api import cli
from shoal_api.cli import COMMANDS, Command, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_has_its_module(name):
    module, _, function = COMMANDS[name].target.partition(":")
    assert function
    assert importlib.util.find_spec(module)


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_with_a_sentence(argv, capsys):
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert any(line.split(None, 1) == [name, command.help] for line in lines)


def test_without_a_command_the_usage_is_shown_and_the_status_is_2(capsys):
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: shoal COMMAND")


@pytest.mark.parametrize(
    ("typed", "meant"), [("servee", "shoal serve"), ("route", "shoal router"), ("xyzzy", "--help")]
)
def test_a_misspelt_command_gets_a_suggestion(typed, meant, capsys):
    assert main([typed]) == 2
    assert meant in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["version"], ["--version"], ["-V"]])
def test_the_version_is_that_of_the_distribution(argv, capsys):
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("shoal 0.")


def test_arguments_and_status_pass_through(tmp_path):
    assert main(["validate", "-f", str(tmp_path / "absent.yaml")]) == 2


def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "needs_torch.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "serve", Command("needs_torch:main", "engine", "Serve."))
    assert main(["serve"]) == 1
    error = capsys.readouterr().err
    assert "a_package_nobody_has" in error
    assert "pip install 'shoal[engine]'" in error


def test_a_broken_import_of_our_own_is_not_taken_for_a_missing_extra(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "serve", Command("shoal_api.no_such_module:main", "engine", "Serve."))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(["serve"])


def test_help_imports_no_program():
    code = (
        "import sys; from shoal_api.cli import main; main(['--help'])\n"
        "heavy = {'torch', 'fastapi', 'httpx', 'shoal_engine', 'shoal_router', 'shoal_operator', 'cel_expr_python'}\n"
        "sys.exit(bool(heavy & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=60).returncode == 0
