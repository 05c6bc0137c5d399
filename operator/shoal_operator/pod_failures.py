"""Why a pod failed last, from its object: PodFailure or None. Judges one pod; what follows from it is others' to say.

A pod that is being deleted has no failure: whatever its containers exit with then, somebody asked for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from shoal_api.exit_codes import ExitCode
from shoal_operator.timestamps import seconds_of
from shoal_operator.world import PodFailure

IMAGE_PULL: Final = "ImagePullBackOff"
CRASH_LOOP: Final = "CrashLoopBackOff"
OOM_KILLED: Final = "OOMKilled"

PULL_REASONS: Final = frozenset({IMAGE_PULL, "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"})
# Reasons of a container that waits for its turn, and not because anything failed.
PATIENT: Final = frozenset({"ContainerCreating", "PodInitializing", ""})
# Kubelet alternates between ErrImagePull and this back-off; without it both say the same, and status stays.
BACK_OFF: Final = re.compile(r'^Back-off pulling image "[^"]*"(: ErrImagePull)?(: )?')
MESSAGE_CHARS: Final = 1024

MEANINGS: Final = {
    ExitCode.UNEXPECTED: "an unexpected error, see the log",
    ExitCode.USAGE: "the options were refused: correct spec.engine",
    ExitCode.MODEL: "the model cannot be served: check spec.model",
    ExitCode.ENGINE_DIED: "the engine process died while computing, see the log",
    ExitCode.OUT_OF_MEMORY: "memory was not enough: give the pod more, or the engine less to do",
    ExitCode.DEVICE: "the accelerator reported an error: if it comes back, look at the node",
    ExitCode.BAD_NUMBERS: "the model computes NaN: check the weights and spec.engine.dtype",
    ExitCode.STALLED: "loading made no progress: check where the model comes from",
    ExitCode.ADDRESS: "the port is taken: check podTemplate for hostNetwork",
}
WORDS: Final = {
    ExitCode.USAGE: "OptionsRefused",
    ExitCode.MODEL: "ModelRefused",
    ExitCode.ENGINE_DIED: "EngineDied",
    ExitCode.OUT_OF_MEMORY: "OutOfMemory",
    ExitCode.DEVICE: "DeviceError",
    ExitCode.BAD_NUMBERS: "BadNumbers",
    ExitCode.STALLED: "LoadingStalled",
    ExitCode.ADDRESS: "AddressTaken",
}
PERMANENT: Final = frozenset({ExitCode.USAGE, ExitCode.MODEL})


def failure_of(pod: Mapping[str, Any]) -> PodFailure | None:
    """What keeps the pod from running now; else what ended a container of it last; else None."""
    if pod["metadata"].get("deletionTimestamp"):
        return None
    failures = list(_container_failures(pod))
    if own := _pod_failure(pod):
        failures.append(own)
    # max takes the first of equals: init containers come first.
    return max(failures, key=lambda failure: (failure.current, failure.time_s), default=None)


def _pod_failure(pod: Mapping[str, Any]) -> PodFailure | None:
    """Kubelet or eviction ended the pod as a whole."""
    status = pod.get("status") or {}
    if status.get("phase") != "Failed" or not status.get("reason"):
        return None
    message = _sentence(status.get("message", ""))
    return PodFailure(pod["metadata"]["name"], "", status["reason"], message, None, _since(pod))


def _container_failures(pod: Mapping[str, Any]) -> Iterator[PodFailure]:
    status = pod.get("status") or {}
    for key in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(key) or ():
            failure = _container_failure(pod, container, is_init=key == "initContainerStatuses")
            if failure:
                yield failure


def _container_failure(
    pod: Mapping[str, Any], container: Mapping[str, Any], *, is_init: bool
) -> PodFailure | None:
    state = container.get("state") or {}
    ended = (container.get("lastState") or {}).get("terminated")
    if waiting := state.get("waiting"):
        reason = waiting.get("reason", "")
        if reason in PATIENT:
            return _exit_failure(pod, container, ended, current=True)
        if reason == CRASH_LOOP and ended:
            return _exit_failure(pod, container, ended, current=True, looping=True)
        return _wait_failure(pod, container, reason, waiting.get("message", ""))
    if now_ended := state.get("terminated"):
        # An init container that ended well has done its part, whatever its earlier attempts did.
        return None if is_init and not now_ended.get("exitCode") else _exit_failure(pod, container, now_ended)
    return _exit_failure(pod, container, ended, current=False)


def _wait_failure(
    pod: Mapping[str, Any], container: Mapping[str, Any], reason: str, message: str
) -> PodFailure:
    permanent = reason == "InvalidImageName"
    if reason in PULL_REASONS:
        image, detail = container.get("image", ""), _sentence(BACK_OFF.sub("", message))
        reason, message = IMAGE_PULL, f"the image {image} cannot be pulled{': ' if detail else ''}{detail}"
    return PodFailure(
        pod["metadata"]["name"],
        container["name"],
        reason,
        _sentence(message),
        None,
        _since(pod),
        permanent=permanent,
    )


def _exit_failure(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    ended: Mapping[str, Any] | None,
    *,
    current: bool = True,
    looping: bool = False,
) -> PodFailure | None:
    if not ended or not ended.get("exitCode"):
        return None
    code = int(ended["exitCode"])
    known = ExitCode(code) if code in ExitCode.__members__.values() else None
    word = WORDS.get(known, "") if known else ""
    reason = word or (CRASH_LOOP if looping else ended.get("reason") or "Error")
    if ended.get("reason") == OOM_KILLED:
        reason, meaning = OOM_KILLED, "the pod's memory limit was reached: raise spec.resources.limits.memory"
    else:
        meaning = MEANINGS.get(known, "") if known else ""
    last_words = _sentence(ended.get("message", ""))
    message = ": ".join(filter(None, (meaning, last_words))) or f"exited with code {code}"
    time_s = seconds_of(ended.get("finishedAt"))
    return PodFailure(
        pod["metadata"]["name"],
        container["name"],
        reason,
        message,
        code,
        _since(pod) if time_s is None else time_s,
        permanent=known in PERMANENT,
        current=current,
    )


def _since(pod: Mapping[str, Any]) -> float:
    """Since when the pod is not ready: what fails without an own time failed no later."""
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "Ready" and condition.get("status") != "True":
            since = seconds_of(condition.get("lastTransitionTime"))
            if since is not None:
                return since
    return seconds_of(pod["metadata"].get("creationTimestamp")) or 0.0


def _sentence(text: str) -> str:
    """The last line that says something, cut to what a status has room for."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:MESSAGE_CHARS] if lines else ""
