"""The kernels of a start are found and compiled on a machine without a GPU.

In a process of its own: this one runs Triton's interpreter, and whoever walks through a start can launch nothing after.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal_api.options import ModelOptions
from shoal_engine.kernel_cache import mark_of
from shoal_engine.kernels.gpu import GpuKind

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
WALK = """
import json, sys
from dataclasses import astuple
from shoal_api.options import ModelOptions
from shoal_engine.kernels.gpu import GpuKind
from shoal_engine.kernels.triton_builds import compile_all
from shoal_engine.start_kernels import kernels_of_start

kind = GpuKind((9, 0), 132)
options = ModelOptions(model=sys.argv[1], load_format="dummy", max_num_seqs=40, max_model_len=4096)
builds = kernels_of_start(options, kind)
invariant = kernels_of_start(options.model_copy(update={"deterministic": True}), kind)
names = [build.kernel.fn.__name__ for build in builds]
few = [build for build in builds if build.kernel.fn.__name__ in ("_embed_kernel", "_silu_mul_kernel")]
print(json.dumps({"names": names, "few": len(few), "failures": compile_all(few, kind, 2), "heavy": "sympy" in sys.modules,
    "invariant": len(invariant), "real": sum(0 in build.kernel.device_caches for build in builds)}))
"""

# As a program does that has used torch before it makes an engine, or makes a second one.
THREADED = """
import os, sys
import torch
from shoal_api.options import ModelOptions
from shoal_engine.forks import fork
from shoal_engine.kernels.gpu import GpuKind
from shoal_engine.start_kernels import kernels_of_start

torch.set_num_threads(2)
torch.ones(4_000_000).exp().sum()
options = ModelOptions(model=sys.argv[1], load_format="dummy", max_num_seqs=40, max_model_len=4096)
child = fork(lambda: int(not kernels_of_start(options, GpuKind((9, 0), 132))), alone=True)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def printed(script: str, model: Path, cache: Path) -> str:
    environ = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "engine"), str(ROOT / "crds")])
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_walk_in_a_fork_waits_for_no_thread_of_torch(model: Path, tmp_path: Path) -> None:
    printed(THREADED, model, tmp_path)


def test_a_start_is_walked_through_and_compiled_without_a_gpu(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = json.loads(printed(WALK, model, cache))
    wanted = {
        "_decode_rows", "_narrow", "_embed_kernel",  # up to 32 decodes
        "_decode_kernel", "_rms_norm_kernel", "_silu_mul_kernel", "_rotate_and_store_kernel",  # more, and prompts
        "_prefill_kernel", "_prefix_kernel", "_unpack_kernel", "choose",
    }  # fmt: skip
    assert wanted <= set(found["names"])
    assert len(found["names"]) < 200  # each kernel once, whatever the number of layers and steps
    assert found["failures"] == 0
    assert found["invariant"] > 8
    assert found["real"] == 0  # what the process has launched itself is another device's
    assert not found["heavy"]  # two seconds of a start
    assert len(list(cache.rglob("*.cubin"))) == found["few"] >= 2
    assert list(cache.rglob("cuda_utils*.so"))  # what loads kernels: else a start wants a C compiler


def test_a_mark_stands_for_all_that_decides_which_kernels_a_start_launches(model: Path) -> None:
    kind = GpuKind((9, 0), 132)
    plain = ModelOptions(model=str(model))
    marks = [
        mark_of(plain, kind),
        mark_of(plain.model_copy(update={"max_num_seqs": 7}), kind),
        mark_of(plain.model_copy(update={"quantization": "fp8"}), kind),
        mark_of(plain, GpuKind((8, 0), 108)),
    ]
    assert len(set(marks)) == 4
    assert mark_of(plain.model_copy(update={"seed": 9, "num_threads": 3}), kind) == marks[0]
    (model / "config.json").write_text(json.dumps({**CONFIG, "head_dim": 64}))
    assert mark_of(plain, kind) not in marks
