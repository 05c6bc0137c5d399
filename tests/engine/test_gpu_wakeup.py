"""What wakes beside the imports, and that nobody who leaves has left it running."""

from __future__ import annotations

import gc
import threading

import pytest

from shoal_engine import gpu_wakeup
from shoal_engine.gpu_wakeup import woken_gpu


@pytest.fixture
def awake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what has woken, each after a while."""
    done: list[str] = []

    def work(name: str) -> None:
        threading.Event().wait(0.02)
        done.append(name)

    monkeypatch.setattr(gpu_wakeup, "_has_driver", lambda: True)
    monkeypatch.setattr(gpu_wakeup, "_create_context", lambda: work("context"))
    monkeypatch.setattr(gpu_wakeup, "_use_libraries", lambda index: work(f"libraries of {index}"))
    monkeypatch.setattr("triton.runtime.cache.triton_key", lambda: work("digest"))
    return done


def test_all_is_awake_when_the_engine_is_loaded_and_the_collector_runs_again(awake: list[str]) -> None:
    with woken_gpu("auto"):
        assert not gc.isenabled()
    assert sorted(awake) == ["context", "digest", "libraries of 0"]
    assert gc.isenabled()


def test_a_start_that_fails_leaves_no_thread_behind(awake: list[str]) -> None:
    with pytest.raises(SystemExit), woken_gpu("auto"):
        raise SystemExit(3)
    assert len(awake) == 3
    assert not gpu_wakeup._waking


def test_a_fork_may_wait_in_the_middle_of_it(awake: list[str]) -> None:
    with woken_gpu("auto"):
        gpu_wakeup.wait_for_gpu()
        assert len(awake) == 3


def test_a_gpu_that_the_caller_already_uses_is_the_one_that_wakes(
    awake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    with woken_gpu("cuda"):
        pass
    assert sorted(awake) == ["digest", "libraries of 1"]


@pytest.mark.parametrize(("device", "driver"), [("cpu", True), ("auto", False)])
def test_nothing_is_woken_for_a_cpu_or_without_a_driver(
    device: str, driver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_wakeup, "_has_driver", lambda: driver)
    monkeypatch.setattr(gpu_wakeup, "_begin", lambda work: pytest.fail("woken"))
    with woken_gpu(device):
        pass


def test_a_machine_without_a_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", absent)
    with woken_gpu("auto"):
        assert not gpu_wakeup._waking


@pytest.mark.parametrize(("capability", "products"), [((7, 5), 0), ((9, 0), 1)])
def test_libraries_of_a_gpu_that_is_too_old_are_left_alone_and_what_fails_is_for_others_to_tell(
    capability: tuple[int, int], products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def zeros(*shape: object, **options: object) -> None:
        asked.append(shape)
        raise RuntimeError("no memory")

    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: capability)
    monkeypatch.setattr("torch.zeros", zeros)
    gpu_wakeup._use_libraries(0)
    assert len(asked) == products
