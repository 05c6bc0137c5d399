from __future__ import annotations

import threading

import pytest

from shoal_engine import gpu_wakeup
from shoal_engine.gpu_wakeup import wait_for_gpu, wake_gpu


def test_whoever_waits_for_the_gpu_finds_it_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    go, awake = threading.Event(), threading.Event()

    def create() -> None:
        go.wait()
        awake.set()

    monkeypatch.setattr(gpu_wakeup, "_create_context", create)
    wake_gpu("auto")
    assert not awake.is_set()
    go.set()
    wait_for_gpu()
    assert awake.is_set()
    wait_for_gpu()  # nothing to wait for


def test_a_cpu_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_wakeup, "_create_context", lambda: pytest.fail("woken"))
    wake_gpu("cpu")
    assert not gpu_wakeup._waking


def test_a_machine_without_a_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(gpu_wakeup.ctypes, "CDLL", absent)
    gpu_wakeup._create_context()
