"""`shoal bench serve` against a real API server, whose engine answers with the prompt's own tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal_api.cli import main
from tests.engine.server.running import Running, serving
from tests.engine.server.scripted_engine import Script

STEP_S = 0.005


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Script(max_model_len=512, step_s=STEP_S)) as running:
        yield running


def bench(server: Running, folder: Path, *options: str) -> tuple[int, dict[str, object]]:
    record = folder / "figures.json"
    status = main(["bench", "serve", f"--base-url={server.url}", f"--output-json={record}", *options])
    return status, json.loads(record.read_text())


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_every_token_counts(server: Running, tmp_path: Path, endpoint: str, capsys) -> None:
    options = ("--num-prompts=5", "--input-len=20", "--output-len=6", f"--endpoint={endpoint}")
    status, found = bench(server, tmp_path, *options)
    assert (status, found["failures"]) == (0, {})
    assert (found["requests"], found["output_tokens"]) == (5, 30)
    if endpoint == "completions":
        assert found["prompt_tokens"] == 100
    else:
        assert found["prompt_tokens"] >= 100  # a word is a token at least, and the template adds its own
    for latency in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        assert 0 < found[latency]["p50"] <= found[latency]["p99"]
    assert found["e2e_ms"]["p50"] >= found["ttft_ms"]["p50"]
    assert "time to first token" in capsys.readouterr().out


def test_a_token_takes_at_least_a_step_of_the_engine(server: Running, tmp_path: Path) -> None:
    _, found = bench(server, tmp_path, "--num-prompts=2", "--input-len=9", "--output-len=40")
    assert found["tpot_ms"]["mean"] >= 0.9 * STEP_S * 1e3


def test_fewer_in_flight_take_longer(server: Running, tmp_path: Path) -> None:
    options = ("--num-prompts=6", "--input-len=9", "--output-len=20")
    _, one_by_one = bench(server, tmp_path, *options, "--max-concurrency=1")
    assert one_by_one["seconds"] >= 6 * 19 * STEP_S  # no two requests share a step


def test_requests_come_at_their_rate(server: Running, tmp_path: Path) -> None:
    options = ("--num-prompts=20", "--input-len=4", "--output-len=1", "--request-rate=40")
    _, found = bench(server, tmp_path, *options)
    from shoal_engine.bench.load import Load, arrivals_s

    last_s = list(arrivals_s(Load(num_prompts=20, input_len=4, output_len=1), 40.0))[-1]
    assert found["seconds"] >= last_s


def test_refusals_are_counted_by_reason_and_change_the_status(
    server: Running, tmp_path: Path, capsys
) -> None:
    status, found = bench(server, tmp_path, "--num-prompts=3", "--input-len=1000")
    assert (status, found["requests"], sum(found["failures"].values())) == (1, 0, 3)
    assert "3 failed: HTTP 400" in capsys.readouterr().out


def test_a_server_that_is_not_there_is_told(capsys) -> None:
    assert main(["bench", "serve", "--base-url=http://127.0.0.1:9", "--num-prompts=1"]) == 1
    assert "http://127.0.0.1:9" in capsys.readouterr().err


def test_the_kinds_are_listed(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "offline" in printed
    assert "serve" in printed
