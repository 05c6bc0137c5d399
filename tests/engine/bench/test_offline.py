"""`shoal bench offline` on a tiny real engine: counts, the cache, the shape alone, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal_api.cli import main
from shoal_api.exit_codes import ExitCode

SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "vocab_size": 211,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
SMALL = ["--num-prompts=6", "--input-len=12", "--output-len=5", "--device=cpu", "--num-threads=1"]


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(SHAPE))
    return path


def test_a_shape_is_enough_and_every_token_counts(shape: Path, tmp_path: Path, capsys) -> None:
    record = tmp_path / "figures.json"
    assert main(["bench", "offline", f"--random-weights={shape}", *SMALL, f"--output-json={record}"]) == 0
    found = json.loads(record.read_text())
    assert (found["requests"], found["prompt_tokens"], found["output_tokens"]) == (6, 72, 30)
    assert found["cached_tokens"] == 0
    assert found["output_tokens_per_s"] == pytest.approx(30 / found["seconds"])
    assert found["total_tokens_per_s"] == pytest.approx(102 / found["seconds"])
    printed = capsys.readouterr().out
    assert f"{found['output_tokens_per_s']:,.1f}" in printed
    assert "on cpu" in printed


def test_a_shared_prefix_is_served_from_the_cache(shape: Path, tmp_path: Path) -> None:
    record = tmp_path / "figures.json"
    options = [*SMALL, "--prefix-len=32", "--max-num-seqs=2", f"--output-json={record}"]
    assert main(["bench", "offline", f"--random-weights={shape}", *options]) == 0
    found = json.loads(record.read_text())
    assert found["prompt_tokens"] == 6 * 44
    assert found["cached_tokens"] >= 4 * 32


def test_engine_options_reach_the_engine(shape: Path, capsys) -> None:
    assert (
        main(["bench", "offline", f"--random-weights={shape}", *SMALL, "--dtype=float32", "--block-size=8"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "float32" in printed
    assert "blocks of 8" in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--random-weights=absent.json"], "--random-weights absent.json: No such file"),
        (["--random-weights=absent.json", "model"], "instead of MODEL"),
        ([], "MODEL: is required"),
        (["--num-prompts=0"], "must be at least 1"),
        (["--range-ratio=1"], "must be from 0 to below 1"),
    ],
)
def test_a_mistake_is_told(options: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "offline", *options])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_load_that_the_model_cannot_serve_is_told(shape: Path, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "offline", f"--random-weights={shape}", *SMALL, "--input-len=4000"])
    assert end.value.code == 2
    assert "context is 128 tokens" in capsys.readouterr().err


def test_a_missing_model_has_the_status_that_serve_has(capsys) -> None:
    assert main(["bench", "offline", "/no/such/model", *SMALL]) == ExitCode.MODEL
    assert "/no/such/model does not exist" in capsys.readouterr().err
