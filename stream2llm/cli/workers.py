"""`stream2llm workers`: what an operator tells the controller about workers."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.policy import DEFAULT_CONTROLLER
from stream2llm.errors import InvalidRequestError, UnavailableError

app = typer.Typer(no_args_is_help=True, help="Start workers again that were given up.")


@app.callback()
def workers() -> None:
    """Start workers again that were given up."""


@app.command()
def retry(
    name: Annotated[
        str | None, typer.Argument(help="For instance decode-0; without it all that wait.")
    ] = None,
    controller: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the controller; `stream2llm up` prints it.",
            envvar="STREAM2LLM_CONTROLLER",
        ),
    ] = DEFAULT_CONTROLLER,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for the controller.")
    ] = 60.0,
) -> None:
    """Start a router or worker now that was given up, or waits to be started again.

    A cluster does that by itself, with pauses that grow to 15 minutes; this is for
    when the cause has been removed. What runs is left alone. Prints the names of what
    is started. Exit codes: 0 the controller has heard of it, 3 nothing has that name,
    4 the controller gives no answer.

    Example: stream2llm workers retry

    Example: stream2llm workers retry decode-0
    """
    with errors_as_exits():
        names = _ask(controller, name, timeout_s)
        typer.echo("\n".join(names) or "nothing waits to be started again")


def _ask(controller: str, name: str | None, timeout_s: float) -> list[str]:
    from urllib.error import HTTPError
    from urllib.request import ProxyHandler, Request, build_opener

    request = Request(
        f"http://{controller}/retry",
        data=json.dumps({} if name is None else {"name": name}).encode(),
        method="PUT",
        headers={"Content-Type": "application/json"},
    )
    try:
        # Without a proxy: the controller is one of ours.
        with build_opener(ProxyHandler({})).open(request, timeout=timeout_s) as answer:
            names: list[str] = json.load(answer)["retried"]
            return names
    except HTTPError as error:
        with error:
            raise _refusal(error.code, error.read(), controller) from None
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"no answer from a controller at {controller}: {getattr(error, 'reason', error)};"
            " is the cluster up (stream2llm up), and is this the address it printed?"
        ) from error


def _refusal(code: int, body: bytes, controller: str) -> Exception:
    try:
        told: dict[str, Any] = json.loads(body)
        message, reason, field = told["error"], told["reason"], told["field"]
    except (ValueError, KeyError, TypeError):
        return UnavailableError(f"what answers at {controller} is no controller (HTTP {code})")
    return InvalidRequestError(message, reason=reason, field=field)
