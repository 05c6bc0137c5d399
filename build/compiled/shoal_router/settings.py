"""What one router process runs with: RouterOptions sorted by who needs them.

Reads no environment and no files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal_api.options import RouterOptions
from shoal_router.discovery import Address
from shoal_router.health import HealthSettings
from shoal_router.http1 import HttpLimits
from shoal_router.listener import ConnectionSettings
from shoal_router.proxy import ProxySettings
from shoal_router.retry import RetryLimits
from shoal_router.routing import Routing
from shoal_router.timeouts import Timeouts


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Settings of the whole process; port 0 takes a free one."""

    addresses: tuple[Address, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    processes: int = 1  # that share the port
    grpc_port: int = 9000  # where the operator reads the router's state, in a cluster
    namespaces: tuple[str, ...] = ()  # searched for replicas when `addresses` is empty
    selector: str = ""
    api_keys: tuple[bytes, ...] = ()
    api_keys_file: str = ""
    engine_api_key: str | None = None
    connect_timeout_s: float = 1.0
    max_held_bytes: int = 256 * 2**20
    drain_delay_s: float = 0.0
    drain_timeout_s: float = 300.0
    access_log: bool = False
    sweep_s: float = 0.5  # how late a deadline may be noticed
    connection: ConnectionSettings = field(default_factory=ConnectionSettings)
    proxy: ProxySettings = field(default_factory=ProxySettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    routing: Routing = field(default_factory=Routing)

    @classmethod
    def from_options(cls, options: RouterOptions) -> RouterSettings:
        """Raises ValueError for an endpoint that is no http://HOST:PORT."""
        return cls(
            addresses=tuple(Address.from_url(url) for url in options.endpoint),
            host=options.host,
            port=options.port,
            processes=options.processes,
            grpc_port=options.grpc_port,
            namespaces=options.namespace,
            selector=options.selector,
            api_keys=tuple(key.encode() for key in options.api_key),
            api_keys_file=options.api_keys_file or "",
            engine_api_key=options.engine_api_key,
            connect_timeout_s=options.connect_timeout_s,
            max_held_bytes=options.max_held_bytes,
            drain_delay_s=options.drain_delay_s,
            drain_timeout_s=options.drain_timeout_s,
            access_log=options.access_log,
            connection=ConnectionSettings(
                HttpLimits(head_bytes=options.max_header_bytes, body_bytes=options.max_body_bytes),
                max_receiving_bytes=options.max_held_bytes,
            ),
            proxy=ProxySettings(
                RetryLimits(options.max_retries, options.retry_budget_percent / 100),
                Timeouts(options.first_byte_timeout_s, options.idle_timeout_s, options.total_timeout_s),
                options.max_resume_bytes,
            ),
            health=HealthSettings(
                options.health_interval_s,
                options.health_timeout_s,
                options.engine_api_key,
            ),
            routing=Routing.from_options(options),
        )
