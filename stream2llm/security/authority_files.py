"""The files of `stream2llm certs`: an authority, a certificate and their keys.

For a cluster whose operator has no authority of their own. The names are those of
Kubernetes' TLS secrets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from stream2llm.api.errors import InvalidRequestError
from stream2llm.security.authority import Signed, new_authority, sign_for

CA_FILE, CA_KEY_FILE = "ca.crt", "ca.key"
CERTIFICATE_FILE, KEY_FILE = "tls.crt", "tls.key"


def write_cluster_files(
    folder: Path, hosts: Sequence[str], now: datetime, lifetime: timedelta
) -> None:
    """Makes an authority and a certificate for `hosts` in `folder`, which is created.

    Raises InvalidRequestError when one of the files is already there, or cannot be written.
    """
    for name in (CA_FILE, CA_KEY_FILE, CERTIFICATE_FILE, KEY_FILE):
        if (folder / name).exists():
            problem = f"{folder / name} is already there: give another folder, or --renew"
            raise InvalidRequestError(problem, reason="FILE_EXISTS", field="DIR")
    authority = new_authority(now)
    signed = sign_for(authority, hosts, now, lifetime)
    with _failures_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / CA_KEY_FILE, authority.key_pem, 0o600)
        _write(folder / CA_FILE, authority.certificate_pem, 0o644)
        _write_signed(folder, signed)


def renew_certificate(
    folder: Path, hosts: Sequence[str], now: datetime, lifetime: timedelta
) -> None:
    """Replaces certificate and key by new ones of the authority that is in `folder`.

    Without `hosts` the names stay. Raises InvalidRequestError for missing or unusable files.
    """
    with _failures_named(folder):
        authority = read_authority(folder)
        present = x509.load_pem_x509_certificate((folder / CERTIFICATE_FILE).read_bytes())
        _write_signed(folder, sign_for(authority, hosts or _hosts_of(present), now, lifetime))


def read_authority(folder: Path) -> Signed:
    """The authority that `write_cluster_files` made; raises OSError or ValueError."""
    certificate = x509.load_pem_x509_certificate((folder / CA_FILE).read_bytes())
    key = load_pem_private_key((folder / CA_KEY_FILE).read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{CA_KEY_FILE} is not a key of `stream2llm certs`")
    return Signed(certificate, key)


def _hosts_of(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def _write_signed(folder: Path, signed: Signed) -> None:
    """Each file at once; who reads between the two finds that they do not fit, and waits."""
    _write(folder / KEY_FILE, signed.key_pem, 0o600)
    _write(folder / CERTIFICATE_FILE, signed.certificate_pem, 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    new.replace(path)


@contextmanager
def _failures_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        problem = f"{folder}: {error}"
        raise InvalidRequestError(problem, reason="BAD_FOLDER", field="DIR") from error
