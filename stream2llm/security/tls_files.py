"""Where a process finds its certificates. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files, named as in `security.tls` of the configuration."""

    # The certificate of this process; those of intermediate authorities may follow it.
    certificate: Path
    # Its private key, without a password.
    key: Path
    # One or more authorities that sign the certificates of the cluster's parts.
    ca: Path
    # The same for certificates of clients. None: clients need no certificate.
    client_ca: Path | None = None

    def named(self) -> dict[str, Path]:
        """Each file that there is, by the name of its field."""
        files = {"certificate": self.certificate, "key": self.key, "ca": self.ca}
        return files if self.client_ca is None else {**files, "client_ca": self.client_ca}
