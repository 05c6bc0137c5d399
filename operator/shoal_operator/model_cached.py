"""How far the model's way into the cache is: the status block `cache` and the condition ModelCached. Pure.

Speaks only of models that a model-loader fetches; a mounted one has no such way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shoal_api.names import CONTAINER_LOADER
from shoal_operator.conditions import Statement, describe
from shoal_operator.tally import Tally

FETCHED: Final = ("hf://", "s3://", "oci://")


def cache_of(tally: Tally, previous: Mapping[str, Any]) -> dict[str, Any] | None:
    """The status block; None if nothing is fetched. The slowest of several downloads is reported."""
    spec = tally.world.deployment.spec
    if not spec.model.uri.startswith(FETCHED) or spec.cache.type == "Image":
        return None
    names = {each.name for each in tally.updated}
    downloads = [each for each in tally.world.downloads if each.pod in names]
    if _loader_failures(tally) or any(each.state == "Failed" for each in downloads):
        return {"state": "Failed"}
    running = [each for each in downloads if each.state != "Ready"]
    if running:
        slowest = min(running, key=lambda each: (each.bytes_done or 0, each.pod))
        sizes = {"bytesTotal": slowest.bytes_total, "bytesDone": slowest.bytes_done}
        return {"state": slowest.state, **{key: size for key, size in sizes.items() if size is not None}}
    before = (previous.get("cache") or {}) if previous.get("updateRevision") == tally.revision else {}
    if downloads or any(each.ready for each in tally.updated) or before.get("state") == "Ready":
        size = next((each.bytes_total for each in downloads if each.bytes_total), before.get("bytesTotal"))
        return {"state": "Ready"} | ({"bytesTotal": size, "bytesDone": size} if size else {})
    return {"state": "Pending"}


def model_cached(tally: Tally, cache: Mapping[str, Any] | None) -> Statement | None:
    """The condition, from the block that cache_of() made."""
    if cache is None:
        return None
    if cache["state"] == "Ready":
        return Statement("True", "Cached", "the model has been fetched")
    if cache["state"] == "Failed":
        advice = "check spec.model.uri, revision and tokenSecretRef, and the way to its store"
        return Statement("False", "DownloadFailed", f"{_cause(tally)}; {advice}")
    words = {"Verifying": "the model is being checked", "Downloading": "the model is being fetched"}
    return Statement("False", "Downloading", words.get(cache["state"], "no pod has begun to fetch the model"))


def _loader_failures(tally: Tally) -> list[str]:
    return [
        describe(failure)
        for replica, failure in tally.failing
        if replica.revision == tally.revision and failure.container == CONTAINER_LOADER
    ]


def _cause(tally: Tally) -> str:
    failed = sorted((each.pod, each.message) for each in tally.world.downloads if each.state == "Failed")
    told = [f"{pod}: {message}" for pod, message in failed if message]
    return next(iter(told + _loader_failures(tally)), "the model could not be fetched")
