"""`stream2llm drain` takes a router or worker out of use without a failed session; `workers retry`
starts again what was given up."""

from __future__ import annotations

import threading
from typing import Annotated, Any

import typer

from stream2llm.api.errors import NotFoundError, UnavailableError
from stream2llm.cli import security_options as secure
from stream2llm.cli.addresses import DEFAULT_CONTROLLER, Controller, ControllerOption
from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.option_groups import expanded
from stream2llm.serving.observability.logs import for_terminal
from stream2llm.serving.system.clock import SystemClock

app = typer.Typer(no_args_is_help=True, help="Start workers again that were given up.")
_LOOK_INTERVAL_S = 1.0


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


@expanded
def drain(
    name: Annotated[str, typer.Argument(help="For instance prefill-0 or router-0.")],
    controller: ControllerOption = DEFAULT_CONTROLLER,
    time_s: Annotated[
        float | None,
        typer.Option(
            "--time",
            min=0,
            help="Seconds that its open sessions have; by default router.drain_timeout_s.",
        ),
    ] = None,
    remove: Annotated[
        bool,
        typer.Option(
            "--remove",
            help="Make no new one; `stream2llm workers retry NAME` does so later.",
        ),
    ] = False,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout",
            min=0,
            help="Seconds to wait until it is replaced (or gone); 0 does not wait.",
        ),
    ] = 900.0,
    *,
    given: secure.Options,
) -> None:
    """Drain a router or worker, and make it anew.

    It gets no new sessions. Those of a worker go on at other workers, unless
    they end in time; those that a router still has at the end of the time end
    with the reason DRAINING, worth a retry. Then its process is replaced, by
    one of the code that is installed now; the command returns when that one is
    ready. `stream2llm rollout restart` does that to all. Exit codes: 0 it is replaced (or gone), 3 nothing has that
    name or it was not in use, 4 the controller gives no answer, or the new one
    is not ready in time.

    Example: stream2llm drain prefill-0

    Example: stream2llm drain decode-1 --time 120 --remove
    """
    with errors_as_exits():
        asked = Controller(controller, given.security())
        before = _replica(asked, name)
        body = {"name": name, "remove": remove, "timeout_s": time_s}
        if not asked.ask("/drain", "draining", body)["draining"]:
            raise NotFoundError(
                f"{name} is not in use: it is {before['phase'].replace('_', ' ')}",
                reason="NOT_IN_USE",
            )
        typer.echo(for_terminal(f"{name} drains"))
        if timeout_s:
            _wait(asked, name, before["incarnation"], timeout_s)


def _replica(controller: Controller, name: str) -> dict[str, Any]:
    """Returns the controller's description of a replica; raises NotFoundError without one."""
    replicas = controller.ask("/status", "replicas")["replicas"]
    found: dict[str, dict[str, Any]] = {each["name"]: each for each in replicas}
    if name not in found:
        raise NotFoundError(
            f"no router or worker is called {name!r}; there are {', '.join(found)}",
            reason="UNKNOWN_WORKER",
            field="name",
        )
    return found[name]


def _wait(controller: Controller, name: str, incarnation: int, timeout_s: float) -> None:
    """Returns when the replica has a ready successor, or is gone; prints each phase once."""
    clock = SystemClock()
    deadline_s = clock.monotonic_s() + timeout_s
    shown = "draining"
    while True:
        now = _replica(controller, name)
        phase = now["phase"].replace("_", " ")
        if phase != shown:
            why = f": {now['reason']}" if now["reason"] else ""
            typer.echo(for_terminal(f"{name} is {phase}{why}"))
            shown = phase
        if phase == "stopped" or (phase == "ready" and now["incarnation"] > incarnation):
            return
        if clock.monotonic_s() > deadline_s:
            raise UnavailableError(f"{name} is {phase} after {timeout_s:g} s", reason="NOT_READY")
        threading.Event().wait(_LOOK_INTERVAL_S)
