"""Encrypted listeners and connections, for gRPC and HTTP alike, from one CertificateStore.

Every new connection takes the newest certificates, and those that are open go on:

- a gRPC server asks before each handshake (`grpc.dynamic_ssl_server_credentials`, which
  works under grpc.aio too);
- an HTTP server has one SSLContext, whose SNI callback, called in each handshake with
  or without a name, puts a context of the newest certificates in its place;
- a channel cannot change its certificate: a part that holds one opens another
  (`PeerChannels.newest`) and lets the old one run out.
"""

from __future__ import annotations

import ssl

import grpc

from stream2llm.api.call_metadata import CallsWith, bearer
from stream2llm.api.grpc_options import channel_options
from stream2llm.security.certificates import Certificates, CertificateStore


def add_port(
    server: grpc.aio.Server, address: str, store: CertificateStore | None, *, for_peers: bool
) -> int:
    """Adds a listener of "host:port" and returns its port; plain text without a store.

    `for_peers`: only for other parts of the cluster, which show a certificate. Otherwise
    for clients, which show one if `client_ca` is set.
    """
    if store is None:
        return int(server.add_insecure_port(address))
    return int(server.add_secure_port(address, _server_credentials(store, for_peers=for_peers)))


def _server_credentials(store: CertificateStore, *, for_peers: bool) -> grpc.ServerCredentials:
    given = store.newest()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """What gRPC shall use from now on; None: what it uses already."""
        nonlocal given
        newest = store.newest()
        if newest is given:
            return None
        given = newest
        return _server_configuration(newest, for_peers=for_peers)

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(given, for_peers=for_peers),
        fetch,
        require_client_authentication=for_peers or store.files.client_ca is not None,
    )


def _server_configuration(
    certificates: Certificates, *, for_peers: bool
) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificates.key, certificates.certificate)],
        certificates.ca if for_peers else certificates.client_ca,
    )


class PeerChannels:
    """Opens a part's channels to others of its cluster, with the newest certificates.

    `peer_name` is the name in their certificates; empty: the host of their address.
    `token` goes with every call of what `calls` returns.
    """

    def __init__(
        self,
        store: CertificateStore | None,
        max_message_bytes: int,
        peer_name: str = "",
        token: str = "",
    ) -> None:
        self._store = store
        self.max_message_bytes = max_message_bytes
        self._metadata = bearer(token)
        self._options = channel_options(max_message_bytes)
        if peer_name:
            self._options.append(("grpc.ssl_target_name_override", peer_name))

    def open(self, address: str) -> tuple[grpc.aio.Channel, Certificates | None]:
        """A channel to "host:port", and the certificates that it uses."""
        newest = self.newest()
        if newest is None:
            return grpc.aio.insecure_channel(address, options=self._options), None
        credentials = grpc.ssl_channel_credentials(newest.ca, newest.key, newest.certificate)
        return grpc.aio.secure_channel(address, credentials, options=self._options), newest

    def calls(self, channel: grpc.aio.Channel) -> CallsWith:
        """What stubs for calls on the channel are made from."""
        return CallsWith(channel, lambda: self._metadata)

    def newest(self) -> Certificates | None:
        """What `open` would use now; a channel with others should be replaced."""
        return None if self._store is None else self._store.newest()


def http_server_context(store: CertificateStore | None) -> ssl.SSLContext | None:
    """For an HTTP server of clients, which show a certificate if `client_ca` is set.

    None, which means plain text, without a store.
    """
    if store is None:
        return None

    def take_newest(connection: ssl.SSLObject, _name: str | None, _front: ssl.SSLContext) -> None:
        connection.context = store.newest().server_context

    front = store.newest().server_context
    front.sni_callback = take_newest
    return front
