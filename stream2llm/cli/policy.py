"""`stream2llm policy`: which sessions prefill workers serve first, seen and changed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from stream2llm.cli.exits import errors_as_exits
from stream2llm.errors import InvalidRequestError, UnavailableError

DEFAULT_CONTROLLER = "127.0.0.1:8360"


def policy(
    name: Annotated[
        str | None,
        typer.Argument(help="default, fcfs, lcas, mcps or srpf; without it nothing is changed."),
    ] = None,
    controller: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the controller; `stream2llm up` prints it.",
            envvar="STREAM2LLM_CONTROLLER",
        ),
    ] = DEFAULT_CONTROLLER,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for the controller.")
    ] = 60.0,
) -> None:
    """Show the scheduling policy of each prefill worker, or switch all of them.

    Sessions go on while the policy changes; workers that are made anew later
    get it too. The configuration file is left as it is. Exit codes: 0 all
    workers answered, 3 there is no such policy, 4 a worker did not confirm or
    the controller gives no answer (try again).

    Example: stream2llm policy

    Example: stream2llm policy lcas
    """
    with errors_as_exits():
        state = _ask(controller, name, timeout_s)
        typer.echo(json.dumps(state, indent=2) if as_json else _lines(state))
        _raise_for_errors(state, switched=name is not None)


def _ask(controller: str, name: str | None, timeout_s: float) -> dict[str, Any]:
    from urllib.error import HTTPError, URLError
    from urllib.request import Request

    from stream2llm.own_http import open_url

    body = None if name is None else json.dumps({"policy": name}).encode()
    request = Request(
        f"http://{controller}/policy",
        data=body,
        method="GET" if name is None else "PUT",
        headers={"Content-Type": "application/json"},
    )
    try:
        with open_url(request, timeout_s) as answer:
            state: dict[str, Any] = json.load(answer)
            return state
    except HTTPError as error:
        with error:
            raise _refusal(error.code, error.read(), controller) from None
    except (URLError, TimeoutError, ConnectionError) as error:
        raise UnavailableError(
            f"no answer from a controller at {controller}: {getattr(error, 'reason', error)};"
            " is the cluster up (stream2llm up), and is this the address it printed?"
        ) from error


def _refusal(code: int, body: bytes, controller: str) -> Exception:
    try:
        told = json.loads(body)
        message, reason, field = told["error"], told["reason"], told["field"]
    except (ValueError, KeyError, TypeError):
        return UnavailableError(f"what answers at {controller} is no controller (HTTP {code})")
    return InvalidRequestError(message, reason=reason, field=field)


def _lines(state: dict[str, Any]) -> str:
    return "\n".join(_line(worker, state["policy"]) for worker in state["workers"])


def _line(worker: dict[str, Any], chosen: str) -> str:
    if worker["policy"]:
        return f"{worker['name']}: {worker['policy']}"
    if worker["error"]:
        return f"{worker['name']}: unknown"
    return f"{worker['name']}: {worker['phase']}, will follow {chosen}"


def _raise_for_errors(state: dict[str, Any], *, switched: bool) -> None:
    failed = [f"{w['name']}: {w['error']}" for w in state["workers"] if w["error"]]
    if failed:
        what = f"did not confirm {state['policy']}" if switched else "did not answer"
        raise UnavailableError(
            f"{len(failed)} of {len(state['workers'])} prefill workers {what}: {'; '.join(failed)}",
            reason="NOT_CONFIRMED",
        )
