"""Options of every gRPC server and channel of ours, so that both ends agree.

Keepalive finds a machine that vanished without closing its connections, and a process that
was stopped. A
server that does not expect pings would answer them with GOAWAY and end the
connection's RPCs, so servers and channels take their options from here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from stream2llm.api.loopback import host_of, is_loopback

Options = list[tuple[str, int | str]]

# The public service, by which routers report their health, too.
SERVICE_NAME = "stream2llm.v1.StreamingInferenceService"


@dataclass(frozen=True, slots=True)
class Keepalive:
    """When a connection on which nothing arrives is asked whether its other end lives."""

    # Without anything received.
    after_ms: int
    # For the answer, which gRPC's own threads give: a busy interpreter does not delay it.
    timeout_ms: int

    def options(self) -> Options:
        """gRPC's options; a ping has its own limit (a minute by default), and the lower one counts."""
        return [
            ("grpc.keepalive_time_ms", self.after_ms),
            ("grpc.keepalive_timeout_ms", self.timeout_ms),
            ("grpc.http2.ping_timeout_ms", self.timeout_ms),
        ]


# Between a client and a router, through whatever networks there are.
_PUBLIC = Keepalive(after_ms=30_000, timeout_ms=10_000)
# Between our own parts: a process that stands still is noticed within 20 s.
_PEERS = Keepalive(after_ms=8_000, timeout_ms=10_000)
# RPCs that have arrived and that Python has not taken yet. gRPC's default bounds
# are 1,000 (random loss begins) and 3,000, and what it drops it does not refuse:
# the client waits for ever. Who is refused is for the router's limits to say, in
# words; so this is only a bound on memory.
_MAX_PENDING_RPCS = 65_536


def server_options(max_message_bytes: int, *, for_peers: bool = False) -> Options:
    """For grpc.aio.server: a router's, or a worker's, which only our own parts call."""
    return [
        *(_PEERS if for_peers else _PUBLIC).options(),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Without it a second server on a taken port would start and get half
        # of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.server.max_pending_requests", _MAX_PENDING_RPCS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_RPCS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]


def channel_options(max_message_bytes: int) -> Options:
    """For every channel between our own parts, which never goes through a proxy.

    With `http_proxy` in the environment gRPC would ask the proxy for a worker's loopback address.
    """
    return [*_options(max_message_bytes, _PEERS), _NO_PROXY]


def client_channel_options(address: str, max_message_bytes: int) -> Options:
    """For a client's channel to a router at `address`.

    A proxy of the environment may be the only way there, and gRPC heeds `no_proxy`; but no proxy
    leads to a loopback address. A target that may stand for several routers ("dns:///name:port",
    "ipv4:address:port,address:port") is balanced.
    """
    options = [*_options(max_message_bytes, _PUBLIC), *_balancing(address), _RECONNECT, _RESOLVE]
    return [*options, _NO_PROXY] if is_loopback(host_of(address)) else options


# gRPC tries less and less often to reach a router that is away, by default every two minutes at
# last; a session that waits for it has less time.
_RECONNECT = ("grpc.max_reconnect_backoff_ms", 5_000)
# A name is resolved again when a router is lost behind it, by default not within half a minute of
# the last time; a session that waits for the others has less time, too.
_RESOLVE = ("grpc.dns_min_time_between_resolutions_ms", 1_000)
_NO_PROXY = ("grpc.enable_http_proxy", 0)
# By default a process's channels to one address share its connection, and the back-off behind a
# failed one: RPCs to a worker that is new at the port of a lost one would fail without being tried.
_OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)

_TARGETS_OF_SEVERAL = ("dns:", "ipv4:", "ipv6:")
# gRPC's default takes the first address for all calls. In turn instead, and only routers whose
# health service says that they serve: not one that drains, or has no workers.
_IN_TURN = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": SERVICE_NAME},
}


def _balancing(address: str) -> Options:
    if not address.startswith(_TARGETS_OF_SEVERAL):
        return []
    return [("grpc.service_config", json.dumps(_IN_TURN))]


def _options(max_message_bytes: int, keepalive: Keepalive) -> Options:
    return [
        *keepalive.options(),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.http2.max_pings_without_data", 0),
        _OWN_CONNECTION,
    ]
