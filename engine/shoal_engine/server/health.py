"""Whether the engine lives and whether it serves: two questions, answered from facts. Pure but for reading
them.
"""

from __future__ import annotations

from shoal_engine.server.replies import HealthReply, ReadyReply
from shoal_engine.server.service import Service


def health(service: Service, now_s: float) -> tuple[HealthReply, int]:
    """Liveness and its HTTP status: loading progresses, or work gets its steps, or there is none."""
    client = service.client
    phase = "serving" if client.ready else client.loading.phase
    if client.ended.done():
        return HealthReply(status="dead", phase=phase), 503
    if client.ready is None and now_s - client.loading_at_s > service.limits.load_progress_s:
        return HealthReply(status="stalled", phase=phase, stalled_s=now_s - client.loading_at_s), 503
    if client.hangs():
        return HealthReply(status="stalled", phase=phase, stalled_s=client.stalled_s()), 503
    return HealthReply(status="ok", phase=phase, stalled_s=client.stalled_s()), 200


def readiness(service: Service) -> tuple[ReadyReply, int]:
    """Whether a request would be served now, and its HTTP status."""
    client = service.client
    loading = client.loading
    if client.ended.done():
        return ReadyReply(status="dead", phase="dead"), 503
    if service.draining:
        return ReadyReply(status="draining", phase="draining"), 503
    if client.ready is None:
        return ReadyReply(status="loading", phase=loading.phase, done=loading.done, total=loading.total), 503
    if service.prompts is None:
        return ReadyReply(status="loading", phase="tokenizer"), 503
    if client.hangs():
        return ReadyReply(status="stalled", phase="serving"), 503
    return ReadyReply(status="ready", phase="serving"), 200
