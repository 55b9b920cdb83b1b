"""The certificates of one process: PEM files that are read again when they change.

Whatever begins a connection asks for the `newest` certificates (reloaded.py).
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from stream2llm.api.errors import InvalidRequestError
from stream2llm.security.reloaded import Reloaded
from stream2llm.security.tls_files import TlsFiles

_log = logging.getLogger(__name__)
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True, slots=True, eq=False)
class Certificates:
    """The content of TlsFiles: PEM text that can be used together. Compare it by identity."""

    certificate: bytes
    key: bytes
    ca: bytes
    client_ca: bytes | None
    # By field: the moment from which nothing can be verified with it any more.
    expiry: dict[str, datetime]
    # For HTTP servers; clients show a certificate if there is a `client_ca`.
    server_context: ssl.SSLContext


def read_certificates(files: TlsFiles) -> Certificates:
    """Reads and checks the files; raises InvalidRequestError that names the one at fault."""
    text = {name: _read(name, path) for name, path in files.named().items()}
    chain = _parsed(x509.load_pem_x509_certificates, text["certificate"], "certificate", files)
    key = _parsed(lambda pem: load_pem_private_key(pem, None), text["key"], "key", files)
    if _public(key) != _public(chain[0]):
        raise _unusable("key", files.key, f"is not the key of {files.certificate}")
    # A chain is as good as its first member to expire, a set of authorities as its last.
    expiry = {"certificate": min(each.not_valid_after_utc for each in chain)}
    for name in ("ca", "client_ca"):
        if name in text:
            found = _parsed(x509.load_pem_x509_certificates, text[name], name, files)
            expiry[name] = max(each.not_valid_after_utc for each in found)
    try:
        context = _server_context(text)
    except ssl.SSLError as error:  # for instance a key that is too short
        raise _unusable("certificate", files.certificate, f"is refused: {error}") from error
    return Certificates(
        text["certificate"], text["key"], text["ca"], text.get("client_ca"), expiry, context
    )


def _server_context(text: dict[str, bytes]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # A resumed connection would not show its certificate again.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    show(context, text["certificate"], text["key"])
    if "client_ca" in text:
        trust(context, text["client_ca"])
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def trust(context: ssl.SSLContext, authorities: bytes) -> None:
    """Has a context trust the authorities of a PEM file, which may have comments in any encoding."""
    found = x509.load_pem_x509_certificates(authorities)
    context.load_verify_locations(
        cadata=b"".join(each.public_bytes(Encoding.DER) for each in found)
    )


def show(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Has a context show a certificate; raises ssl.SSLError for one that OpenSSL refuses."""
    # Python's ssl reads keys from files alone; this one is never on a disk.
    with open(os.memfd_create("certificate"), "wb") as file:
        file.write(key + b"\n" + certificate)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


class CertificateStore(Reloaded[Certificates]):
    """The newest usable content of TlsFiles."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises InvalidRequestError when the files cannot be used from the beginning."""
        self.files = files
        super().__init__(files.named().values())

    def _read(self) -> Certificates:
        return read_certificates(self.files)

    def _log_failure(self, error: InvalidRequestError) -> None:
        _log.error("tls_files_unusable error=%s (those before stay in use)", error.message)

    def _log_change(self, content: Certificates) -> None:
        expiry = content.expiry["certificate"].isoformat()
        _log.info("tls_files_read certificate=%s expires=%s", self.files.certificate, expiry)


def open_certificates(files: TlsFiles | None) -> CertificateStore | None:
    """Reads this node's files; None, which means plain text, without any."""
    return None if files is None else CertificateStore(files)


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(name, path, f"cannot be read: {error.strerror}") from error


def _parsed(parse: Callable[[bytes], _Parsed], pem: bytes, name: str, files: TlsFiles) -> _Parsed:
    try:
        return parse(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: a password
        what = "a private key without a password" if name == "key" else "certificates"
        problem = f"is not {what} in PEM: {error}"
        raise _unusable(name, files.named()[name], problem) from error


def _public(owner: PrivateKeyTypes | x509.Certificate) -> bytes:
    return owner.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _unusable(name: str, path: Path, problem: str) -> InvalidRequestError:
    field = f"security.tls.{name}"
    return InvalidRequestError(f"{field}: {path} {problem}", reason="BAD_TLS_FILE", field=field)
