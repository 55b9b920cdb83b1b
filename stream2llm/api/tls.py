"""TLS of a client: whom it trusts, what it shows, and what a failed handshake means."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from stream2llm.api import arguments
from stream2llm.api.errors import InvalidRequestError

PathOf = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files of a client."""

    # Authorities that sign servers' certificates. None: those that this machine trusts.
    ca: PathOf | None = None
    # What the client shows where servers ask for a certificate, and its key.
    certificate: PathOf | None = None
    key: PathOf | None = None
    # The name that servers' certificates must have; empty: that of their address.
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) is not (self.key is None):
            raise InvalidRequestError(
                "a certificate and its key are needed together", reason="BAD_TLS_FILE", field="tls"
            )


Tls = bool | PathOf | ClientTls | None


def tls_of(value: Tls) -> ClientTls | None:
    """True: this machine's authorities; a path: a file of authorities; None or False: plain text."""
    if value is None or isinstance(value, ClientTls):
        return value
    if isinstance(value, bool):
        return ClientTls() if value else None
    if isinstance(value, (str, PathLike)) and value:
        return ClientTls(ca=value)
    raise arguments.refused("tls", value, "True, a path, ClientTls or None")


class _Context(ssl.SSLContext):
    """Expects `server_name`, if there is one, in place of the name that the HTTP client gives."""

    server_name = ""

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        if self.server_name:
            options["server_hostname"] = self.server_name
        return super().wrap_socket(*args, **options)


def http_context(tls: ClientTls) -> ssl.SSLContext:
    """For HTTP; raises InvalidRequestError for a file that cannot be used."""
    try:
        context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        context.server_name = tls.server_name
        if tls.ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(tls.ca)
        if tls.certificate is not None and tls.key is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:  # ssl.SSLError is one
        names = ", ".join(str(each) for each in (tls.ca, tls.certificate, tls.key) if each)
        raise _unusable(names, error) from error
    return context


def explained(problem: str) -> str:
    """Adds, once, what a failed handshake probably means, for both ends of it."""
    meaning = next((hint for sign, hint in _HINTS if sign in problem), "")
    return f"{problem} ({meaning})" if meaning and meaning not in problem else problem


_HUNG_UP = (
    "the server hung up in the handshake: it may speak TLS (tls=, --tls-ca), or ask for a valid"
    " certificate of the client (--tls-cert, --tls-key)"
)
_OTHER_NAME = "the server's certificate is for other names than this address"
# Words of gRPC, OpenSSL and Python; the first that fits counts.
_HINTS = (
    ("Trying to connect an http1.x server", "an HTTP server listens there: is it the controller?"),
    ("WRONG_VERSION_NUMBER", "the server speaks no TLS there"),
    ("certificate has expired", "the server's certificate has expired"),
    ("Hostname Verification", _OTHER_NAME),
    ("certificate is not valid for", _OTHER_NAME),
    ("CERTIFICATE_VERIFY_FAILED", "the server's certificate is of no authority in tls=, --tls-ca"),
    ("failed to connect to all addresses; last error: UNAVAILABLE", _HUNG_UP),
    ("Remote end closed connection", _HUNG_UP),
    ("Connection reset by peer", _HUNG_UP),
    ("EOF occurred in violation of protocol", _HUNG_UP),
    ("CERTIFICATE_REQUIRED", _HUNG_UP),
)


def read_file(path: PathOf) -> bytes:
    """A file's content; raises InvalidRequestError with its path."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unusable(str(path), error) from error


def _unusable(names: str, error: OSError) -> InvalidRequestError:
    problem = f"{names}: {error.strerror or error}"
    return InvalidRequestError(problem, reason="BAD_TLS_FILE", field="tls")
