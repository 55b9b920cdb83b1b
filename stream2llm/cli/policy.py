"""`stream2llm policy`: shows and changes which sessions prefill workers serve first."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from stream2llm.api.errors import UnavailableError
from stream2llm.cli import security_options as secure
from stream2llm.cli.addresses import DEFAULT_CONTROLLER, Controller, ControllerOption
from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.option_groups import expanded
from stream2llm.serving.observability.logs import for_terminal, one_line


@expanded
def policy(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A built-in policy, or the import path of one that the configuration names; without it nothing is changed."
        ),
    ] = None,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for the controller.")
    ] = 60.0,
    *,
    given: secure.Options,
) -> None:
    """Show or switch the scheduling policy of the prefill workers.

    Sessions go on while the policy changes; workers that are made anew later
    get it too. The configuration file is left as it is. Exit codes: 0 all
    workers answered, 3 there is no such policy, 4 a worker did not confirm or
    the controller gives no answer (try again).

    Example: stream2llm policy

    Example: stream2llm policy lcas
    """
    with errors_as_exits():
        body = None if name is None else {"policy": name}
        asked = Controller(controller, given.security(), timeout_s)
        state = asked.ask("/policy", "workers", body)
        typer.echo(json.dumps(state, indent=2) if as_json else for_terminal(policy_lines(state)))
        _raise_for_errors(state, switched=name is not None)


def policy_lines(state: dict[str, Any]) -> str:
    """One line for each worker."""
    return "\n".join(_line(worker, state["policy"]) for worker in state["workers"])


def _line(worker: dict[str, Any], chosen: str) -> str:
    if worker["policy"]:
        line = f"{worker['name']}: {worker['policy']}"
        if worker["policy"] == chosen:
            return line
        why = one_line(worker["failure"]) or "the worker's log has the reason"
        return f"{line}, instead of the chosen {chosen}: {why}"
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
