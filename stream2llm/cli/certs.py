"""`stream2llm certs`: certificates for a cluster without an authority of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream2llm.cli.exits import errors_as_exits
from stream2llm.serving.observability.logs import for_terminal


def certs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder for the files.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or address by which a node is reached; may be repeated. This machine's name"
            " and loopback addresses are always in the certificate."
        ),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Days that the certificate is valid.")] = 365,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew",
            help="Replace certificate and key by new ones of the authority in DIR, with the same"
            " names unless --host gives others. A running cluster takes them by itself.",
        ),
    ] = False,
) -> None:
    """Make a certificate authority and a certificate for a cluster.

    Writes ca.crt, ca.key, tls.crt and tls.key, refuses to overwrite any of them,
    and prints the configuration that uses them. Every node needs ca.crt, tls.crt
    and tls.key; clients need ca.crt; ca.key stays where it is. Exit codes: 0
    written, 3 a file is already there or cannot be written.

    Example: stream2llm certs certs --host node-1 --host 10.0.0.1

    Example: stream2llm certs certs --renew
    """
    import socket
    from datetime import UTC, datetime, timedelta

    from stream2llm.security.authority_files import renew_certificate, write_cluster_files
    from stream2llm.serving.system.clock import SystemClock

    now, lifetime = datetime.fromtimestamp(SystemClock().wall_s(), UTC), timedelta(days=days)
    here = ["localhost", "127.0.0.1", "::1", socket.gethostname()]
    with errors_as_exits():
        if renew:
            hosts = [*here, *host] if host else []
            renew_certificate(folder, hosts, now, lifetime)
        else:
            write_cluster_files(folder, [*here, *(host or [])], now, lifetime)
            typer.echo(for_terminal(_configuration(folder.resolve())))


def _configuration(folder: Path) -> str:
    lines = ["security:", "  tls:"]
    for key, name in (("certificate", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt")):
        lines.append(f"    {key}: {folder / name}")
    return "\n".join(lines)
