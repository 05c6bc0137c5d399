"""What a server's API process loads of a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.router.tiny_model import write_tiny_model
from tests.builders import smollm2

LOAD = """
import sys
from shoal_api.options import ModelOptions
from shoal_engine.model_text import load_model_text
import shoal_engine.server.serving
load_model_text(ModelOptions(model=sys.argv[1]))
print(sorted({"torch", "transformers", "triton"} & set(sys.modules)))
"""


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_the_api_process_needs_no_torch_which_takes_seconds_and_memory(kind: str, tmp_path: Path) -> None:
    model = tmp_path
    if kind == "folder":
        write_tiny_model(tmp_path)
    else:
        model = smollm2()
    command = [sys.executable, "-c", LOAD, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
