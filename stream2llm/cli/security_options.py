"""TLS and API key of every command that asks a running cluster: the same options and variables.

A key on the command line would be in the list of processes, so there is no option for one.
"""

from __future__ import annotations

import os
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

TlsCa = Annotated[
    str | None,
    typer.Option(
        "--tls-ca",
        metavar="FILE",
        help="Use TLS, and trust the authorities in this PEM file; `system` for those that this"
        " machine trusts. Without it plain text.",
        envvar="STREAM2LLM_TLS_CA",
    ),
]
TlsCert = Annotated[
    str | None,
    typer.Option(
        "--tls-cert",
        metavar="FILE",
        help="PEM file with the certificate to show where the cluster asks for one.",
        envvar="STREAM2LLM_TLS_CERT",
    ),
]
TlsKey = Annotated[
    str | None,
    typer.Option(
        "--tls-key",
        metavar="FILE",
        help="PEM file with the key of --tls-cert.",
        envvar="STREAM2LLM_TLS_KEY",
    ),
]
TlsServerName = Annotated[
    str,
    typer.Option(
        "--tls-server-name",
        metavar="NAME",
        help="The name that the cluster's certificates have, where it is not that of the address"
        " (security.tls.peer_name).",
        envvar="STREAM2LLM_TLS_SERVER_NAME",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        help="File with the API key or token to send; without it that of STREAM2LLM_API_KEY,"
        " if set. Neither is sent to another machine in plain text.",
        envvar="STREAM2LLM_API_KEY_FILE",
    ),
]


def chosen(
    ca: str | None,
    certificate: str | None,
    key: str | None,
    server_name: str,
    key_file: Path | None,
) -> ClientSecurity:
    """The options as one value; raises InvalidRequestError for a file that cannot be used."""
    return ClientSecurity(chosen_tls(ca, certificate, key, server_name), chosen_key(key_file))


def chosen_tls(
    ca: str | None, certificate: str | None, key: str | None, server_name: str
) -> ClientTls | None:
    """The options as one value; None, which is plain text, without --tls-ca."""
    if ca is None:
        if certificate or key or server_name:
            raise typer.BadParameter("--tls-cert, --tls-key and --tls-server-name need --tls-ca")
        return None
    return ClientTls(None if ca == SYSTEM else ca, certificate, key, server_name)


def chosen_key(file: Path | None) -> ClientCredentials:
    """The file's key, or the environment's; raises InvalidRequestError for one that is none."""
    if file is None:
        return credentials_of(None, None, os.environ.get(API_KEY_VARIABLE))
    try:
        return credentials_of(file.read_text(), None)
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "not UTF-8"
        raise InvalidRequestError(f"{file}: {problem}", field="--api-key-file") from error
