"""Production routers on the virtual network."""

from __future__ import annotations

from typing import Any

from router.server import Router
from router.tokenizer import ModelTokenizer
from stream2llm.security.principal import DEFAULT_TENANT
from stream2llm.security.tls import PeerChannels
from stream2llm.serving.settings.router_spec import AdmissionMode, RouterLimits, RouterSpec
from stream2llm.serving.settings.security_options import AuthOptions, ProxyOptions, SecurityOptions
from stream2llm.serving.settings.tenant_options import TenantOptions, TenantsOptions
from stream2llm.serving.system.clock import Clock
from tests.fake_workers import MAX_MODEL_LEN
from tests.router_ring import NoMetricsServer
from tests.simulation.channel import Channel
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.server import Server

# The same for a router's successors, so that clients find them.
PORT = 50051
TENANT_HEADER = "x-tenant"
TENANTS = (DEFAULT_TENANT, "acme")
# A client's proxy says whose session it is.
_AUTH = AuthOptions(proxy=ProxyOptions(tenant_header=TENANT_HEADER, peers=("loopback",)))
_LOOSE = SecurityOptions(auth=_AUTH)
_TIGHT = SecurityOptions(
    auth=_AUTH,
    tenants=TenantsOptions(
        default=TenantOptions(max_open_sessions=4, max_tokens_per_minute=300),
        named={"acme": TenantOptions(weight=2.0, priority=1, max_held_tokens=60)},
    ),
)
_TIMES = {"max_session_duration_s": 600.0, "input_idle_timeout_s": 30.0}
_LIMITS = RouterLimits(credit_window_tokens=64, **_TIMES)
_WIDE = RouterLimits(credit_window_tokens=1024, **_TIMES)
_FEW_PLACES = RouterLimits(
    credit_window_tokens=16, max_open_sessions=3, silent_after_s=0.1, **_TIMES
)


class VirtualPeers(PeerChannels):
    """A router's channels on the virtual network."""

    def __init__(self, network: Network, process: Process) -> None:
        super().__init__(None, _LIMITS.max_message_bytes)
        self._network = network
        self._process = process

    def open(self, address: str) -> tuple[Any, None]:
        return Channel(self._network, self._process, address), None


def new_router(
    name: str,
    process: Process,
    network: Network,
    clock: Clock,
    tokenizer: ModelTokenizer,
    *,
    is_tight: bool,
    is_long: bool,
    admission: AdmissionMode,
) -> Router:
    """A router that has not started."""
    spec = RouterSpec(
        router_id=name,
        host=name,
        port=PORT,
        metrics_port=0,
        model_name="tiny",
        model_path="",
        max_model_len=MAX_MODEL_LEN,
        handover="at_seal",
        drain_timeout_s=10.0,
        limits=_FEW_PLACES if is_tight else _WIDE if is_long else _LIMITS,
        security=_TIGHT if is_tight else _LOOSE,
        admission=admission,
    )
    return Router(
        spec,
        clock,
        NoMetricsServer,
        lambda interceptors, options: Server(network, process, interceptors),
        VirtualPeers(network, process),
        tokenizer,
    )
