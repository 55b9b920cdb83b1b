"""Options of every gRPC server and channel of ours, so that both ends agree.

Keepalive finds a machine that vanished without closing its connections. A
server that does not expect pings would answer them with GOAWAY and end the
connection's RPCs, so servers and channels take their options from here.
"""

from __future__ import annotations

Options = list[tuple[str, int]]

_KEEPALIVE_TIME_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000


def server_options(max_message_bytes: int) -> Options:
    """For grpc.aio.server."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Without it a second server on a taken port would start and get half
        # of the connections.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def channel_options(max_message_bytes: int) -> Options:
    """For grpc.aio.insecure_channel and its secure and synchronous relatives."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
    ]
