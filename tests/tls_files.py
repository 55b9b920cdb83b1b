"""Certificates of tests: authorities of their own, and files that are replaced."""

from __future__ import annotations

import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from stream2llm.api.tls import ClientTls
from stream2llm.security.authority import Signed, new_authority, sign_for
from stream2llm.security.tls_files import TlsFiles
from stream2llm.serving.settings.security_options import SecurityOptions, TlsOptions

DAY = timedelta(days=1)


class Authority:
    """Signs certificates for this machine."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)
        self.signer = new_authority(self.now)

    def sign(self, *hosts: str, days: int = 30) -> Signed:
        """A new certificate; one with negative days has expired."""
        names = hosts or ("localhost", "127.0.0.1")
        return sign_for(self.signer, names, self.now, days * DAY)

    def files(self, folder: Path, client_ca: Authority | None = None) -> TlsFiles:
        """New files with a certificate of ours."""
        folder.mkdir(exist_ok=True)
        files = TlsFiles(
            folder / "tls.crt", folder / "tls.key", folder / "ca.crt",
            None if client_ca is None else folder / "client_ca.crt",
        )  # fmt: skip
        replace(files.ca, self.signer.certificate_pem)
        if files.client_ca is not None and client_ca is not None:
            replace(files.client_ca, client_ca.signer.certificate_pem)
        self.renew(files)
        return files

    def renew(self, files: TlsFiles, *hosts: str, days: int = 30) -> Signed:
        """Replaces certificate and key."""
        signed = self.sign(*hosts, days=days)
        replace(files.key, signed.key_pem)
        replace(files.certificate, signed.certificate_pem)
        return signed

    def security(self, folder: Path, client_ca: Authority | None = None) -> SecurityOptions:
        """A configuration with new files."""
        files = self.files(folder, client_ca)
        return SecurityOptions(tls=TlsOptions.model_validate(files.named()))

    def client(self, folder: Path, trusted: Path) -> ClientTls:
        """A client with a new certificate of ours, which trusts the authorities in a file."""
        files = self.files(folder)
        return ClientTls(trusted, files.certificate, files.key)


def replace(path: Path, content: bytes) -> None:
    """At once, as a reader sees it."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, path)


def client_context(authority: Authority, shown: Signed | None, folder: Path) -> ssl.SSLContext:
    """A client's, which trusts one authority and shows a certificate or none."""
    context = ssl.create_default_context(cadata=authority.signer.certificate_pem.decode())
    if shown is not None:
        path = folder / "shown.pem"
        path.write_bytes(shown.key_pem + shown.certificate_pem)
        context.load_cert_chain(path)
    return context


def certificate_of(address: str, context: ssl.SSLContext) -> bytes | None:
    """What a new connection gets to see, in DER; gRPC insists on ALPN."""
    host, _, port = address.rpartition(":")
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((host, int(port)), 10) as connection,
        context.wrap_socket(connection, server_hostname=host) as encrypted,
    ):
        return encrypted.getpeercert(binary_form=True)


def der(signed: Signed) -> bytes:
    """A certificate as `certificate_of` returns it."""
    return signed.certificate.public_bytes(Encoding.DER)
