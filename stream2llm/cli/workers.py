"""`stream2llm workers`: an operator's commands about workers."""

from __future__ import annotations

from typing import Annotated

import typer

from stream2llm.cli import security_options as secure
from stream2llm.cli.addresses import DEFAULT_CONTROLLER, Controller, ControllerOption
from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.option_groups import expanded
from stream2llm.serving.observability.logs import for_terminal

app = typer.Typer(no_args_is_help=True, help="Start workers again that were given up.")


@app.callback()
def workers() -> None:
    """Start workers again that were given up."""


@app.command()
@expanded
def retry(
    name: Annotated[
        str | None, typer.Argument(help="For instance decode-0; without it all that wait.")
    ] = None,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for the controller.")
    ] = 60.0,
    *,
    given: secure.Options,
) -> None:
    """Start a router or worker now that was given up, or waits to be started again.

    A cluster does that by itself, with pauses that grow to 15 minutes; use this
    when the cause has been removed. Running ones are left alone. Prints the names
    of those that are started. Exit codes: 0 the controller has accepted it, 3
    nothing has that name, 4 the controller gives no answer.

    Example: stream2llm workers retry

    Example: stream2llm workers retry decode-0
    """
    with errors_as_exits():
        body = {} if name is None else {"name": name}
        asked = Controller(controller, given.security(), timeout_s)
        names = asked.ask("/retry", "retried", body)["retried"]
        typer.echo(for_terminal("\n".join(names)) or "nothing waits to be started again")
