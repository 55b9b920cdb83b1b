"""TLS and API key of every command that asks a running cluster: the same options and variables.

A key on the command line would be in the list of processes, so there is no option for one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from stream2llm.api.credentials import (
    API_KEY_VARIABLE,
    ClientCredentials,
    ClientSecurity,
    credentials_of,
)
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.tls import ClientTls

SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """What a command was given of the options of TLS."""

    tls_ca: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Use TLS, and trust the authorities in this PEM file; `system` for those that this"
            " machine trusts. Without it plain text.",
            envvar="STREAM2LLM_TLS_CA",
        ),
    ] = None
    tls_cert: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="PEM file with the certificate to show where the cluster asks for one.",
            envvar="STREAM2LLM_TLS_CERT",
        ),
    ] = None
    tls_key: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="PEM file with the key of --tls-cert.", envvar="STREAM2LLM_TLS_KEY"
        ),
    ] = None
    tls_server_name: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The name that the cluster's certificates have, where it is not that of the address"
            " (security.tls.peer_name).",
            envvar="STREAM2LLM_TLS_SERVER_NAME",
        ),
    ] = ""

    def tls(self) -> ClientTls | None:
        """Returns them as one value; None, which is plain text, without --tls-ca."""
        if self.tls_ca is None:
            if self.tls_cert or self.tls_key or self.tls_server_name:
                raise typer.BadParameter(
                    "--tls-cert, --tls-key and --tls-server-name need --tls-ca"
                )
            return None
        ca = None if self.tls_ca == SYSTEM else self.tls_ca
        return ClientTls(ca, self.tls_cert, self.tls_key, self.tls_server_name)


@dataclass(frozen=True, slots=True)
class Options(TlsOptions):
    """What a command was given of the options of TLS and of the key; no file has been read."""

    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the API key or token to send; without it that of STREAM2LLM_API_KEY,"
            " if set. Neither is sent to another machine in plain text.",
            envvar="STREAM2LLM_API_KEY_FILE",
        ),
    ] = None

    def security(self) -> ClientSecurity:
        """Returns them as one value; raises InvalidRequestError for a file that cannot be used."""
        return ClientSecurity(self.tls(), chosen_key(self.api_key_file))


def chosen_key(file: Path | None) -> ClientCredentials:
    """The file's key, or the environment's; raises InvalidRequestError for one that is none."""
    if file is None:
        return credentials_of(None, None, os.environ.get(API_KEY_VARIABLE))
    try:
        return credentials_of(file.read_text(), None)
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "not UTF-8"
        raise InvalidRequestError(f"{file}: {problem}", field="--api-key-file") from error
