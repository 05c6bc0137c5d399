"""`shoal fetch` as processes: the folder it prints, two at once, kill -9 in the middle, GET /progress."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from shoal_api.exit_codes import ExitCode
from shoal_api.model_cache import cache_path
from tests.engine.sources.hub import Hub, running

ROOT = Path(__file__).parents[3]
WEIGHTS = random.Random(2).randbytes(400_000)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}
URI = "hf://org/model"


def start(hub, cache, *arguments, uri=URI):
    environ = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}/crds:{ROOT}/engine",
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "",
    }
    command = [sys.executable, "-m", "shoal_api.cli", "fetch", uri, "--cache-dir", str(cache), *arguments]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition, limit_s=30):
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return value


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def progress(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def test_it_prints_the_folder_and_does_not_ask_again(tmp_path):
    with running(Hub(FILES)) as hub:
        for _ in range(2):
            process = start(hub, tmp_path)
            out, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (0, "")
            assert Path(out.strip()) == tmp_path / cache_path(URI, None)
            assert {path.name: path.read_bytes() for path in Path(out.strip()).iterdir()} == FILES
            requests = len(hub.requests)
        assert requests == 5  # the list, two redirects, two contents: all of the first process


def test_of_two_processes_one_loads_and_both_find_it_ready(tmp_path):
    with running(Hub(FILES, hold_after=100_000)) as hub:
        processes = [start(hub, tmp_path) for _ in range(2)]
        until(lambda: any(name == "model.safetensors" for name, _ in hub.contents()))
        hub.hold_after = None
        hub.released.set()
        folders = {process.communicate(timeout=60)[0] for process in processes}
        assert [process.returncode for process in processes] == [0, 0]
        assert folders == {f"{tmp_path / cache_path(URI, None)}\n"}
        assert sum(path.startswith("/api/") for _, path, *_ in hub.requests) == 1


def test_kill_9_then_only_the_missing_bytes_are_loaded(tmp_path):
    partial = tmp_path / f".{cache_path(URI, None)}.partial"
    with running(Hub(FILES, hold_after=100_000)) as hub:
        port = free_port()
        process = start(hub, tmp_path, "--progress-port", str(port))
        until(lambda: (partial / "config.json").exists() and (partial / "config.json").stat().st_size == 2)
        whole = {"state": "Downloading", "bytes_total": 400_002, "bytes_done": 100_002, "message": ""}
        until(lambda: progress(port) == whole)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert not (tmp_path / cache_path(URI, None)).exists()
        before, hub.hold_after = len(hub.contents()), None
        again = start(hub, tmp_path)
        out, _ = again.communicate(timeout=60)
        assert again.returncode == 0
        assert hub.contents()[before:] == [("model.safetensors", "bytes=100000-")]
        assert (Path(out.strip()) / "model.safetensors").read_bytes() == WEIGHTS
        assert not partial.exists()


def test_sigterm_ends_it_at_once(tmp_path):
    with running(Hub(FILES, hold_after=1000)) as hub:
        process = start(hub, tmp_path)
        until(hub.contents)
        process.terminate()
        process.communicate(timeout=10)
        assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("uri", ["hf://org/absent", "ftp://a/b", "file:///models/a", "hf://lonely"])
def test_what_cannot_be_had_is_one_line_and_the_models_exit_code(tmp_path, uri):
    with running(Hub(FILES)) as hub:
        process = start(hub, tmp_path, uri=uri)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (ExitCode.MODEL, "")
    assert err.startswith("shoal fetch: ")
    assert err.count("\n") == 1


def test_a_taken_port(tmp_path):
    with running(Hub(FILES)) as hub, socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(hub, tmp_path, "--progress-port", str(taken.getsockname()[1]))
        process.communicate(timeout=60)
    assert process.returncode == ExitCode.ADDRESS
