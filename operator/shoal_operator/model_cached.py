"""How far the model's way into the cache is: the status block `cache` and the condition ModelCached. Pure.

Speaks only of models that a model-loader fetches; a mounted one has no such way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from shoal_api.names import CONTAINER_LOADER
from shoal_operator.conditions import Statement, describe
from shoal_operator.tally import Tally
from shoal_operator.world import Download, Replica

FETCHED: Final = ("hf://", "s3://", "oci://")


def cache_of(tally: Tally, previous: Mapping[str, Any]) -> dict[str, Any] | None:
    """The status block; None if nothing is fetched. The slowest of several downloads is reported."""
    spec = tally.world.deployment.spec
    if not spec.model.uri.startswith(FETCHED) or spec.cache.type == "Image":
        return None
    downloads = _downloads(tally)
    if _loader_failures(tally) or any(each.state == "Failed" for each in downloads):
        return {"state": "Failed"}
    if slowest := _slowest(downloads):
        sizes = {"bytesTotal": slowest.bytes_total, "bytesDone": slowest.bytes_done}
        return {"state": slowest.state, **{key: size for key, size in sizes.items() if size is not None}}
    before = (previous.get("cache") or {}) if previous.get("updateRevision") == tally.revision else {}
    # The engine of a pod starts after its loaders have ended well.
    is_fetched = (
        downloads or any(each.phase == "Running" for each in tally.updated) or _is_fetched_ahead(tally)
    )
    if is_fetched or before.get("state") == "Ready":
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
    if cache["state"] == "Verifying":
        return Statement("False", "Downloading", "the model is being checked")
    slowest = _slowest(_downloads(tally))
    message = _how_far(slowest) if slowest else "no pod has begun to fetch the model"
    return Statement("False", "Downloading", message)


def _ahead(tally: Tally) -> list[Replica]:
    """Pods that fetch the wanted revision's model before a replica of it begins."""
    return [each for each in tally.world.prefetch_pods if each.revision == tally.revision]


def _is_fetched_ahead(tally: Tally) -> bool:
    return not tally.world.prefetching and any(each.phase == "Succeeded" for each in _ahead(tally))


def _downloads(tally: Tally) -> list[Download]:
    names = {each.name for each in (*tally.updated, *_ahead(tally))}
    return [each for each in tally.world.downloads if each.pod in names]


def _slowest(downloads: list[Download]) -> Download | None:
    """Of those still at work. One that knows no size yet waits for another pod, or has just begun."""
    return min(
        (each for each in downloads if each.state != "Ready"),
        key=lambda each: (each.bytes_total is None, each.bytes_done or 0, each.pod, each.state),
        default=None,
    )


def _how_far(download: Download) -> str:
    """In GB of 10^9 bytes, and in minutes where the rate is known."""
    total, done, rate = download.bytes_total, download.bytes_done or 0, download.bytes_per_s
    message = "the model is being fetched"
    if not total:
        return f"{message}: {download.message}" if download.message else message
    message += f": {done / 1e9:.1f} of {total / 1e9:.1f} GB"
    if rate is None or done >= total:
        return message
    if not rate:
        return f"{message}, none of it lately"
    minutes = math.ceil((total - done) / rate / 60)
    return f"{message}, about {minutes} {'minute' if minutes == 1 else 'minutes'} left"


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
