"""All proxied requests of one router: what they share, and the sweep that enforces timeouts.

What happens to one request is exchange.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shoal_router.admission import Admission
from shoal_router.connection import ClientConnection
from shoal_router.demand import Demand
from shoal_router.endpoints import Endpoint
from shoal_router.exchange import Exchange
from shoal_router.gate import Gate
from shoal_router.interrupted import Interrupted
from shoal_router.journal import Journal
from shoal_router.metrics import Metrics
from shoal_router.placer import Placer
from shoal_router.prompt import Prompt, Work
from shoal_router.proxied import Proxied
from shoal_router.quarantine import Quarantine
from shoal_router.request import Request
from shoal_router.retry import RetryLimits
from shoal_router.routing import Routing
from shoal_router.standing import Outcome
from shoal_router.timeouts import Timeouts
from shoal_router.usage import AnswerTokens


@dataclass(frozen=True, slots=True)
class ProxySettings:
    retries: RetryLimits = field(default_factory=RetryLimits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    resume_bytes: int = 256 * 2**20  # request bodies of streams; one beyond that cannot be resumed


class Proxy:
    """All proxied requests of one router, and what they share."""

    def __init__(
        self,
        settings: ProxySettings,
        placer: Placer,
        metrics: Metrics,
        demand: Demand,
        admission: Admission,
        gate: Gate,
        answers: AnswerTokens,
        *,
        observe: Callable[[Endpoint, Outcome], None],
        routing: Callable[[str], Routing],
        now: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.placer = placer
        self.metrics = metrics
        self.demand = demand
        self.admission = admission
        self.gate = gate
        self.answers = answers
        self.observe = observe
        self.routing = routing  # of a model
        self.now = now
        self.interrupted = Interrupted(now)
        self.quarantine = Quarantine()
        self.journal: Journal | None = None  # set while somebody wants to know what becomes of requests
        self.active: set[Proxied] = set()
        self.retrying = 0
        self.kept_bytes = 0  # request bodies of streams that can be resumed, or will be

    def begin(self, request: Request, client: ClientConnection, prompt: Prompt) -> None:
        """Proxy one request; the client gets a reply or an error. Raises RateLimited or RequestQuarantined."""
        if len(self.quarantine):
            self.quarantine.check(request, self.now())
        request.grant = self.gate.begin(request, prompt)
        if self.journal is not None:
            request.record = self.journal.begin(request, prompt.model, stream=prompt.stream)
        exchange = Exchange(self, client, request, prompt)
        self.active.add(exchange)
        self.demand.arrived(prompt.model)
        client.answered_by(exchange)
        if prompt.model in self.admission.queues and prompt.work is not Work.TOKENIZE:
            self.admission.line_up(exchange, prompt.model)
        else:
            exchange.attempt()

    def keep(self, model: str, body_bytes: int) -> bool:
        """Whether a stream's body of so many bytes may be kept for it to be resumed; it is counted then."""
        if self.kept_bytes + body_bytes > self.settings.resume_bytes or not self.routing(model).resume:
            return False
        self.kept_bytes += body_bytes
        return True

    def sweep(self) -> None:
        """Enforce timeouts; call it about once a second."""
        self.admission.sweep()
        self.interrupted.sweep()
        now = self.now()
        for proxied in list(self.active):
            proxied.check_timeouts(now)
