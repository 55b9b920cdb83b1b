"""`stream2llm keys`: makes, lists and revokes API keys in a file of their hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream2llm.cli.exits import errors_as_exits
from stream2llm.security.principal import DEFAULT_TENANT, Scope
from stream2llm.serving.observability.logs import for_terminal

app = typer.Typer(
    no_args_is_help=True, help="Make, list and revoke API keys in a file of their hashes."
)

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="What security.auth.keys_file names.")
]


@app.command()
def create(
    file: FileArgument,
    tenant: Annotated[
        str, typer.Option(help="Whose key it is: sessions share KV within a tenant only.")
    ] = DEFAULT_TENANT,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            help="What it may do; may be repeated. session: ask the model; read: status and"
            " metrics; operator: read, change the policy, and retry, drain and restart replicas."
            "  [default: session]"
        ),
    ] = None,
    note: Annotated[str, typer.Option(help="What it is for, in your words.")] = "",
) -> None:
    """Add a key to the file, which is made if missing, and print the key.

    The file keeps a hash alone: the key cannot be shown again. A running cluster
    reads the file again by itself. Exit codes: 0 added, 3 the file cannot be used.

    Example: stream2llm keys create keys.jsonl --tenant acme --note "the web shop"

    Example: stream2llm keys create keys.jsonl --scope operator --scope session
    """
    from datetime import UTC, datetime

    from stream2llm.security.key_edit import create_key
    from stream2llm.serving.system.clock import SystemClock

    now = datetime.fromtimestamp(SystemClock().wall_s(), UTC).isoformat(timespec="seconds")
    with errors_as_exits():
        typer.echo(for_terminal(create_key(file, tenant, scope or [Scope.SESSION], note, now)))


@app.command(name="list")
def list_keys(file: FileArgument) -> None:
    """Print the file's keys: id, tenant, scopes, date and note.

    Exit codes: 0 printed, 3 the file cannot be used.

    Example: stream2llm keys list keys.jsonl
    """
    from stream2llm.security.api_keys import read_entries

    with errors_as_exits():
        for entry in read_entries(file).values():
            scopes = ",".join(sorted(entry.scopes))
            columns = (entry.key_id, entry.tenant, scopes, entry.created, entry.note)
            typer.echo(for_terminal("  ".join(columns).rstrip()))


@app.command()
def revoke(
    file: FileArgument,
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="The key's id: what stands between its two _.")
    ],
) -> None:
    """Remove a key from the file; what it has begun goes on, and nothing new begins.

    Exit codes: 0 removed, 3 the file has no such key or cannot be used.

    Example: stream2llm keys revoke keys.jsonl 3f9a0c12be77
    """
    from stream2llm.security.key_edit import revoke_key

    with errors_as_exits():
        entry = revoke_key(file, key_id)
        typer.echo(for_terminal(f"revoked {entry.key_id} of {entry.tenant}  {entry.note}".rstrip()))
