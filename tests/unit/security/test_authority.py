"""`stream2llm certs`: files that work, and that are never overwritten."""

from __future__ import annotations

import ipaddress
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from stream2llm.cluster.config_file import parse_config
from stream2llm.security.authority_files import read_authority
from stream2llm.security.certificates import CertificateStore, read_certificates
from tests.command_lines import cli
from tests.tls_files import Authority


def certs(folder: Path, *options: str) -> str:
    ended = cli("certs", folder, *options)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def names_in(folder: Path) -> list[object]:
    certificate = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [name.value for name in found]


def test_the_printed_configuration_is_that_of_usable_files(tmp_path: Path) -> None:
    printed = certs(tmp_path / "new", "--host", "node-1", "--host", "10.0.0.7", "--days", "7")
    tls = parse_config(yaml.safe_load(printed), source="printed").security.tls
    expiry = read_certificates(tls.files).expiry
    assert expiry["certificate"] - datetime.now(UTC) <= timedelta(days=7)
    assert {"localhost", "node-1", ipaddress.ip_address("10.0.0.7")} <= {
        *names_in(tmp_path / "new")
    }
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "tls.crt": 0o644, "tls.key": 0o600}


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
def test_no_file_is_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious")
    ended = cli("certs", tmp_path)
    assert ended.exit_code == 3
    assert f"{tmp_path / name} is already there" in ended.output
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_renewed_certificate_is_of_the_same_authority_and_for_the_same_names(
    tmp_path: Path,
) -> None:
    printed = certs(tmp_path, "--host", "node-1")
    tls = parse_config(yaml.safe_load(printed), source="printed").security.tls
    store = CertificateStore(tls.files)
    before, names = store.newest(), names_in(tmp_path)
    assert certs(tmp_path, "--renew") == ""
    after = store.newest()
    assert (after.certificate != before.certificate, after.ca) == (True, before.ca)
    assert names_in(tmp_path) == names
    certs(tmp_path, "--renew", "--host", "node-2")
    assert "node-2" in names_in(tmp_path)
    assert "node-1" not in names_in(tmp_path)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--renew"], "No such file"),
        (["--host", "host:80"], "'host:80' is neither an address nor a host name"),
        (["--host", "kö"], "'kö' is neither an address nor a host name"),
    ],
)
def test_what_cannot_be_made_is_explained(options: list[str], problem: str, tmp_path: Path) -> None:
    ended = cli("certs", tmp_path, *options)
    assert ended.exit_code == 3
    assert problem in ended.output
    assert list(tmp_path.iterdir()) == []


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    authority = Authority().signer
    signed = Authority().sign(days=100_000)
    assert signed.certificate.not_valid_after_utc <= authority.certificate.not_valid_after_utc


def test_the_authority_s_key_is_read_back(tmp_path: Path) -> None:
    certs(tmp_path)
    authority = read_authority(tmp_path)
    assert authority.certificate.public_key() == authority.key.public_key()
