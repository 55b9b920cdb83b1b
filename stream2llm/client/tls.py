"""TLS of a client's gRPC channel."""

from __future__ import annotations

import ssl
from typing import Any

import grpc

from stream2llm.api import arguments
from stream2llm.api.tls import ClientTls, read_file


def channel_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """For gRPC; raises InvalidRequestError for a file that cannot be read."""
    ca = tls.ca or ssl.get_default_verify_paths().cafile  # None: those that come with gRPC
    parts = [None if path is None else read_file(path) for path in (ca, tls.key, tls.certificate)]
    return grpc.ssl_channel_credentials(*parts)


def checked_credentials(
    credentials: grpc.ChannelCredentials | None, tls: ClientTls | None
) -> grpc.ChannelCredentials | None:
    """The credentials that a caller gave, or those of `tls`; None: plain text."""
    if credentials is not None and not isinstance(credentials, grpc.ChannelCredentials):
        raise arguments.refused("credentials", credentials, "grpc.ChannelCredentials or None")
    if tls is None:
        return credentials
    if credentials is not None:
        raise arguments.refused("credentials", credentials, "None where `tls` is given")
    return channel_credentials(tls)


def channel_options(tls: ClientTls | None) -> list[tuple[str, Any]]:
    """What a channel needs beside its credentials."""
    if tls is None or not tls.server_name:
        return []
    return [("grpc.ssl_target_name_override", tls.server_name)]
