"""Options of every gRPC server and channel of ours, so that both ends agree.

Keepalive finds a machine that vanished without closing its connections. A
server that does not expect pings would answer them with GOAWAY and end the
connection's RPCs, so servers and channels take their options from here.
"""

from __future__ import annotations

from stream2llm.api.loopback import host_of, is_loopback

Options = list[tuple[str, int]]

_KEEPALIVE_TIME_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
# RPCs that have arrived and that Python has not taken yet. gRPC's default bounds
# are 1,000 (random loss begins) and 3,000, and what it drops it does not refuse:
# the client waits for ever. Who is refused is for the router's limits to say, in
# words; so this is only a bound on memory.
_MAX_PENDING_RPCS = 65_536


def server_options(max_message_bytes: int) -> Options:
    """For grpc.aio.server."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Without it a second server on a taken port would start and get half
        # of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.server.max_pending_requests", _MAX_PENDING_RPCS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_RPCS),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def channel_options(max_message_bytes: int) -> Options:
    """For every channel between our own parts, which never goes through a proxy.

    With `http_proxy` in the environment gRPC would ask the proxy for a worker's loopback address.
    """
    return [*_options(max_message_bytes), _NO_PROXY]


def client_channel_options(address: str, max_message_bytes: int) -> Options:
    """For a client's channel to a router at `address`.

    A proxy of the environment may be the only way there, and gRPC heeds `no_proxy`; but no proxy
    leads to a loopback address.
    """
    options = _options(max_message_bytes)
    return [*options, _NO_PROXY] if is_loopback(host_of(address)) else options


_NO_PROXY = ("grpc.enable_http_proxy", 0)


def _options(max_message_bytes: int) -> Options:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
    ]
