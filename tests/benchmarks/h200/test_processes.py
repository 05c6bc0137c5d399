"""A process that dies costs the workload it died in and no other; what came before it counts. Children are scripted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import processes
import pytest
import workloads

# Every workload is a figure of value 1; B is the last one of its process.
CHILD = """
import json, sys, time
options = dict(zip(sys.argv[1:-1], sys.argv[2:]))
folder, engine, names = options["--folder"], options["--child"], sys.argv[-1].split(",")
if names == ["start"]:
    print("loading")
    print('ready {"weights": 0.5}', flush=True)
    time.sleep(1)
    raise SystemExit
if "silent" in names:
    raise SystemExit("cannot load")
for name in names:
    with open(f"{folder}/begun", "a") as file:
        print(name, file=file)
    with open(f"{folder}/{engine}.jsonl", "a") as file:
        figure = {"engine": engine, "model": "tiny", "fp8": False, "name": name, "unit": "ms", "value": 1.0}
        print(json.dumps(figure), file=file)
    if name == "B":
        raise SystemExit("out of memory")
"""


@pytest.fixture(autouse=True)
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    monkeypatch.setattr(processes, "SCRIPT", script)


def run(folder: Path, names: list[str]) -> list[str]:
    args = workloads.parser().parse_args(["--cpu-tiny"])
    return [figure.name for figure in processes.Processes("shoal", args, [], folder).figures(names)]


def test_after_a_death_the_next_process_goes_on(tmp_path: Path, capfd) -> None:
    assert run(tmp_path, ["A", "B", "D", "E"]) == ["A", "B", "D", "E"]
    assert "failed in B; the next goes on" in capfd.readouterr().out


def test_an_engine_that_never_starts_is_tried_once(tmp_path: Path, capfd) -> None:
    assert run(tmp_path, ["silent", "A"]) == []
    assert capfd.readouterr().out.count("does not start; left out: silent, A") == 1


def test_a_start_is_timed_cold_and_again(tmp_path: Path) -> None:
    args = workloads.parser().parse_args(["--cpu-tiny"])
    cold, again = processes.Processes("shoal", args, [], tmp_path).figures(["start"])
    assert (cold.name, again.name) == ("start cold", "start again")
    assert cold.details == {"weights": 0.5}


def test_how_a_process_ends_is_not_part_of_its_start(tmp_path: Path) -> None:
    args = workloads.parser().parse_args(["--cpu-tiny"])
    began = time.perf_counter()
    starts = processes.Processes("shoal", args, [], tmp_path).figures(["start"])
    assert sum(start.value for start in starts) < time.perf_counter() - began - 2  # each sleeps a second


def test_a_start_that_fails_says_why(tmp_path: Path, capfd) -> None:
    (tmp_path / "child.py").write_text("raise SystemExit('no such card')")
    args = workloads.parser().parse_args(["--cpu-tiny"])
    assert processes.Processes("shoal", args, [], tmp_path).figures(["start"]) == []
    assert "start cold failed\nno such card" in capfd.readouterr().out


def test_the_command_prints_a_table_and_keeps_records(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    assert workloads.main(["--cpu-tiny", "--workloads", "A,E"]) == 0
    printed = capfd.readouterr().out
    assert "$ python benchmarks/h200/workloads.py --cpu-tiny --workloads A,E" in printed
    records = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert [(record["name"], record["value"]) for record in records] == [("A", 1.0), ("E", 1.0)]


def test_a_missing_figure_changes_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workloads.main(["--cpu-tiny", "--workloads", "A,profile"]) == 0
    monkeypatch.setattr(processes, "SCRIPT", tmp_path / "absent.py")
    assert workloads.main(["--cpu-tiny", "--workloads", "A"]) == 1


def test_an_unknown_workload_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        workloads.main(["--workloads", "A,Z"])
    assert "no workload Z" in capsys.readouterr().err
