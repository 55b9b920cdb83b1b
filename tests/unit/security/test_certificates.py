"""Certificate files: which are refused, and what happens when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from stream2llm.api.errors import InvalidRequestError
from stream2llm.security.certificates import CertificateStore, read_certificates
from stream2llm.security.self_check import peer_problem
from stream2llm.security.tls_files import TlsFiles
from stream2llm.security.tls_metrics import TlsMetrics
from tests.tls_files import Authority, replace

EXPIRY = "stream2llm_tls_certificate_expiry_timestamp_seconds"
FAILURES = "stream2llm_tls_reload_failures_total"


def cut(path: Path) -> None:
    """Leaves what a writer has written halfway."""
    content = path.read_bytes()
    replace(path, content[: len(content) // 2])


def of_another(path: Path) -> None:
    replace(path, Authority().sign().key_pem)


BROKEN: list[tuple[str, Callable[[Path], None], str]] = [
    ("certificate", cut, "is not certificates in PEM"),
    ("certificate", Path.unlink, "cannot be read: No such file"),
    ("key", cut, "is not a private key without a password in PEM"),
    ("key", of_another, "is not the key of .*tls.crt"),
    ("ca", cut, "is not certificates in PEM"),
    ("client_ca", Path.unlink, "cannot be read: No such file"),
]
each_fault = pytest.mark.parametrize(
    ("name", "spoil", "problem"), BROKEN, ids=lambda each: getattr(each, "__name__", None)
)


@each_fault
def test_a_file_that_cannot_be_used_is_named(
    name: str, spoil: Callable[[Path], None], problem: str, authority: Authority, tmp_path: Path
) -> None:
    files = authority.files(tmp_path, client_ca=authority)
    spoil(files.named()[name])
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        read_certificates(files)
    assert caught.value.field == f"security.tls.{name}"
    assert caught.value.message.startswith(f"security.tls.{name}: {files.named()[name]} ")


@each_fault
def test_a_broken_new_file_leaves_the_certificates_before_in_use(
    name: str,
    spoil: Callable[[Path], None],
    problem: str,
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = authority.files(tmp_path, client_ca=authority)
    store, registry = CertificateStore(files), CollectorRegistry()
    registry.register(TlsMetrics(store))
    before = store.newest()
    spoil(files.named()[name])
    assert store.newest() is before
    assert store.newest() is before  # which reports it once, not at every connection
    (record,) = (r for r in caplog.records if r.levelno >= logging.ERROR)
    assert f"tls_files_unusable error=security.tls.{name}" in record.getMessage()
    assert registry.get_sample_value(FAILURES) == 1
    authority.files(tmp_path, client_ca=authority)
    assert store.newest() is not before


def test_the_newest_files_are_in_use_and_unchanged_ones_are_not_read(
    authority: Authority, tmp_path: Path
) -> None:
    files = authority.files(tmp_path)
    store = CertificateStore(files)
    first = store.newest()
    assert store.newest() is first
    signed = authority.renew(files)
    second = store.newest()
    assert (second.certificate, second.key) == (signed.certificate_pem, signed.key_pem)
    assert store.newest() is second


def test_metrics_show_when_each_file_expires(authority: Authority, tmp_path: Path) -> None:
    files = authority.files(tmp_path)
    registry = CollectorRegistry()
    registry.register(TlsMetrics(CertificateStore(files)))
    soon = authority.renew(files, days=2).certificate.not_valid_after_utc.timestamp()
    ca = authority.signer.certificate.not_valid_after_utc.timestamp()
    shown = {name: registry.get_sample_value(EXPIRY, {"file": name}) for name in files.named()}
    assert shown == {"certificate": soon, "key": None, "ca": ca}
    assert registry.get_sample_value(FAILURES) == 0


def test_a_chain_expires_with_its_first_and_authorities_with_their_last(tmp_path: Path) -> None:
    old, new = Authority(), Authority()
    files = new.files(tmp_path)
    short, long = new.sign(days=1), new.renew(files, days=30)
    replace(files.certificate, long.certificate_pem + short.certificate_pem)
    replace(files.ca, new.signer.certificate_pem + old.sign(days=2).certificate_pem)
    expiry = read_certificates(files).expiry
    assert expiry["certificate"] == short.certificate.not_valid_after_utc
    assert expiry["ca"] == new.signer.certificate.not_valid_after_utc


def test_a_file_of_authorities_may_have_comments(authority: Authority, tmp_path: Path) -> None:
    files = authority.files(tmp_path, client_ca=authority)
    assert files.client_ca is not None
    for file in (files.ca, files.client_ca):
        replace(file, "# Autorité\n".encode() + authority.signer.certificate_pem)
    certificates = read_certificates(files)
    assert len(certificates.server_context.get_ca_certs()) == 1
    assert peer_problem(certificates, "localhost") == ""


def test_files_have_the_names_of_the_configuration() -> None:
    files = TlsFiles(Path("a"), Path("b"), Path("c"), Path("d"))
    assert list(files.named()) == ["certificate", "key", "ca", "client_ca"]
