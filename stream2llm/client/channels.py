"""Opens gRPC channels to routers: those of an asynchronous client, and blocking ones."""

from __future__ import annotations

import random
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc

from stream2llm.api import arguments
from stream2llm.api.address import router_targets
from stream2llm.api.credentials import ClientCredentials
from stream2llm.api.grpc_options import client_channel_options
from stream2llm.api.tls import ClientTls, read_file
from stream2llm.client.connection import Connection, refuse_after_fork
from stream2llm.client.connections import Connections

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MOST_MESSAGE_BYTES = 2**31 - 1  # gRPC's own limit


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


def connections_to(
    address: str | Sequence[str],
    tls: ClientTls | None,
    credentials: grpc.ChannelCredentials | None,
    sent: ClientCredentials,
    max_message_bytes: int,
) -> Connections:
    """Returns a client's connections, whose channels open at the first call.

    `sent` goes with each call. Raises InvalidRequestError for what is no address, and where
    credentials would go to another machine in plain text; RuntimeError in a process that was
    forked from one in which gRPC ran.
    """
    refuse_after_fork()
    checked = checked_credentials(credentials, tls)

    def connect(target: str) -> Connection:
        sent.require_encryption(target, is_encrypted=checked is not None)
        make_channel = partial(_channel, target, checked, max_message_bytes, tls)
        return Connection(make_channel, sent.metadata)

    targets = router_targets(address)
    # So that clients of one session each do not all go to the same router.
    return Connections(targets, connect, first=random.randrange(len(targets)))


def _channel(
    address: str,
    credentials: grpc.ChannelCredentials | None,
    max_message_bytes: int,
    tls: ClientTls | None,
) -> grpc.aio.Channel:
    options = [*client_channel_options(address, max_message_bytes), *channel_options(tls)]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def open_channel(address: str, tls: ClientTls | None, max_message_bytes: int) -> grpc.Channel:
    """Opens a blocking channel; raises ValueError for what is no address."""
    options = [*client_channel_options(address, max_message_bytes), *channel_options(tls)]
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, channel_credentials(tls), options=options)
