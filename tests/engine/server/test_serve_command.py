from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from shoal_api.exit_codes import ExitCode
from shoal_api.options import ServeOptions
from shoal_engine.__main__ import choose_grpc_port
from tests.builders import smollm2
from tests.engine.server.running import until
from tests.engine.server.serve_command import entries, free_port, serve, start


def missing(folder: Path) -> Path:
    return folder / "missing.gguf"


def garbage(folder: Path) -> Path:
    path = folder / "garbage.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 100)
    return path


def cut_off(folder: Path) -> Path:
    path = folder / "cut.gguf"
    path.write_bytes(smollm2().read_bytes()[:3_000_000])
    return path


def empty(folder: Path) -> Path:
    return folder


def unknown_architecture(folder: Path) -> Path:
    (folder / "config.json").write_text('{"architectures": ["MarsRoverForCausalLM"], "model_type": "rover"}')
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, ["missing.gguf", "does not exist"]),
        (garbage, ["garbage.gguf"]),
        (cut_off, ["cut.gguf"]),
        (empty, ["config.json"]),
        (unknown_architecture, ["MarsRoverForCausalLM"]),
    ],
)
def test_a_model_that_cannot_be_served_ends_the_command_with_one_line_that_says_why(
    make: Callable[[Path], Path], words: list[str], tmp_path: Path
) -> None:
    process = start(str(make(tmp_path)), f"--port={free_port()}")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.MODEL
    log = entries(stderr.decode())
    errors = [entry for entry in log if entry["level"] == "error"]
    assert len(errors) == 1
    assert errors == log[-1:]
    assert errors[0]["exit_code"] == ExitCode.MODEL
    assert "traceback" not in errors[0]
    for word in words:
        assert word in errors[0]["event"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["m.gguf", "--block-size=3"], ExitCode.USAGE, "--block-size"),
        (["m.gguf", "--no-such-option"], ExitCode.USAGE, "--no-such-option"),
        ([], ExitCode.USAGE, "MODEL"),
        (["m.gguf", "--host=203.0.113.7"], ExitCode.ADDRESS, "203.0.113.7"),
    ],
)
def test_options_that_cannot_be_used_are_told_and_nothing_is_started(
    options: list[str], code: ExitCode, words: str
) -> None:
    process = start(*options)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert words in stderr.decode()
    assert "Traceback" not in stderr.decode()


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_that_is_taken_is_found_before_anything_is_loaded(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(str(smollm2()), f"--port={free_port()}", f"{option}={port}")
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.ADDRESS
    assert stderr.decode().count("\n") == 1
    assert f"127.0.0.1:{port}" in stderr.decode()


@pytest.mark.parametrize(
    ("grpc_port", "taken", "asked"),
    [(0, False, []), (None, False, [9000]), (None, True, [9000, 0]), (9000, False, [9000])],
)
def test_the_grpc_port_is_that_of_the_option_or_9000_or_a_free_one(
    grpc_port: int | None, taken: bool, asked: list[int]
) -> None:
    tried = []

    def listen(host: str, port: int) -> socket.socket:
        tried.append(port)
        if taken and port:
            raise OSError("taken")
        return socket.create_server((host, 0))

    assert bool(choose_grpc_port(ServeOptions(model="m", grpc_port=grpc_port), listen)) == bool(asked)
    assert tried == asked


def test_a_killed_engine_process_is_told_to_the_client_and_in_the_exit_code() -> None:
    with serve(str(smollm2()), "--max-model-len=512", "--num-threads=1") as served:
        lines: list[str] = []
        broken = threading.Event()

        def read() -> None:
            body = {"prompt": "Once upon a time", "max_tokens": 400, "stream": True, "ignore_eos": True}
            with served.http.stream("POST", "/v1/completions", json=body) as response:
                try:
                    lines.extend(line for line in response.iter_lines() if line)
                except httpx.RemoteProtocolError:
                    broken.set()

        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: len(lines) > 3)
        os.kill(served.engine_pid(), signal.SIGKILL)
        assert served.process.wait(timeout=60) == 128 + signal.SIGKILL
        reader.join(timeout=60)
        assert broken.is_set()
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        (error,) = [entry for entry in served.log() if entry["level"] == "error"]
        assert "was killed by signal 9" in error["event"]


def test_an_api_process_that_is_killed_takes_its_engine_along() -> None:
    with serve(str(smollm2()), "--max-model-len=512", "--num-threads=1") as served:
        engine = served.engine_pid()
        served.process.kill()
        served.process.wait(timeout=60)
        until(
            lambda: (
                not Path(f"/proc/{engine}").exists()
                or b"Z" in Path(f"/proc/{engine}/stat").read_bytes().split()[2:3]
            )
        )
