"""A certificate authority for one cluster, and certificates that it signs. No files."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stream2llm.api.errors import InvalidRequestError

CA_LIFETIME = timedelta(days=3650)
# Clocks of other machines may be behind.
_BACKDATED = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key as PEM, without a password."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_authority(now: datetime) -> Signed:
    """A new authority, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Stream2LLM cluster authority")
    builder = _builder(key, name, name, now - _BACKDATED, now + CA_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return Signed(builder.sign(key, hashes.SHA256()), key)


def sign_for(authority: Signed, hosts: Sequence[str], now: datetime, lifetime: timedelta) -> Signed:
    """A new certificate for these names and addresses, to serve with and to connect with.

    It ends with its authority at the latest. Raises InvalidRequestError for an unusable name.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    ends = min(now + lifetime, authority.certificate.not_valid_after_utc)
    issuer, signer = authority.certificate.subject, authority.key.public_key()
    builder = _builder(key, _name("Stream2LLM"), issuer, min(now, ends) - _BACKDATED, ends)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(names, critical=False)
    )
    return Signed(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    issuer: x509.Name,
    begins: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    with suppress(ValueError):  # not ASCII
        if host and ":" not in host:
            return x509.DNSName(host)
    problem = f"{host!r} is neither an address nor a host name in ASCII"
    raise InvalidRequestError(problem, reason="BAD_ARGUMENT", field="--host")


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
