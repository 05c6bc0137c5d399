from __future__ import annotations

import threading

import pytest

from shoal_engine import gpu_wakeup
from shoal_engine.gpu_wakeup import wait_for_gpu, wake_gpu, wake_libraries


def test_whoever_waits_for_the_gpu_finds_it_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    go, awake = threading.Event(), []

    def work(name: str) -> None:
        go.wait()
        awake.append(name)

    monkeypatch.setattr(gpu_wakeup, "_has_driver", lambda: True)
    monkeypatch.setattr(gpu_wakeup, "_create_context", lambda: work("context"))
    monkeypatch.setattr(gpu_wakeup, "_use_libraries", lambda: work("libraries"))
    monkeypatch.setattr("triton.runtime.cache.triton_key", lambda: work("digest"))
    wake_gpu("auto")
    wake_libraries("auto")
    assert not awake
    go.set()
    wait_for_gpu()
    assert sorted(awake) == ["context", "digest", "libraries"]
    wait_for_gpu()  # nothing to wait for


@pytest.mark.parametrize(("device", "driver"), [("cpu", True), ("auto", False)])
def test_nothing_is_woken_for_a_cpu_or_without_a_driver(
    device: str, driver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_wakeup, "_has_driver", lambda: driver)
    monkeypatch.setattr(gpu_wakeup, "_begin", lambda work: pytest.fail("woken"))
    wake_gpu(device)
    wake_libraries(device)
    assert not gpu_wakeup._waking


def test_a_machine_without_a_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", absent)
    wake_gpu("auto")
    assert not gpu_wakeup._waking


def test_libraries_that_fail_leave_it_to_the_first_step_to_say_so() -> None:
    gpu_wakeup._use_libraries()  # there is no GPU here
