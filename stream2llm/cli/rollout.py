"""`stream2llm rollout`: replaces all routers and workers, one after the other, under load."""

from __future__ import annotations

import threading
from typing import Annotated, Any

import typer

from stream2llm.api.errors import NotFoundError, UnavailableError
from stream2llm.cli import security_options as secure
from stream2llm.cli.addresses import (
    DEFAULT_CONTROLLER,
    NO_ANSWER,
    Controller,
    ControllerOption,
)
from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.option_groups import expanded
from stream2llm.serving.observability.logs import for_terminal
from stream2llm.serving.system.clock import SystemClock

# Longest absence of a controller that is started again.
_ABSENCE_S = 60.0
_LOOK_INTERVAL_S = 1.0

app = typer.Typer(
    no_args_is_help=True, help="Replace routers and workers one after the other, under load."
)

WaitOption = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Print the progress, and return at the end.")
]


@app.callback()
def rollout() -> None:
    """Replace routers and workers one after the other, under load."""


@app.command()
@expanded
def restart(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="For instance prefill-0; without names all."),
    ] = None,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    time_s: Annotated[
        float | None,
        typer.Option(
            "--time",
            min=0,
            help="Seconds that open sessions have at each; by default router.drain_timeout_s.",
        ),
    ] = None,
    limit_s: Annotated[
        float,
        typer.Option(
            "--limit", min=0, help="Seconds for each, its drain included; then all of it fails."
        ),
    ] = 900.0,
    wait: WaitOption = True,
    *,
    given: secure.Options,
) -> None:
    """Replace routers and workers by new ones, one after the other.

    Workers come before routers. Each is drained, replaced by a process of the
    code that is installed now, and waited for until routers use it. The only
    worker of its role gets a stand-in before, where a node has room for one.
    The controller does it: when this command ends, it goes on (`rollout
    status`, `rollout stop`). Exit codes: 0 all are replaced, 3 nothing has that
    name or a rolling restart is under way, 4 one does not come up, or the
    controller gives no answer.

    Example: stream2llm rollout restart

    Example: stream2llm rollout restart decode-0 decode-1 --time 120
    """
    with errors_as_exits():
        asked = Controller(controller, given.security())
        body = {"names": names or [], "timeout_s": time_s, "limit_s": limit_s}
        listed = asked.ask("/rollout", "rollout", body)["rollout"]
        typer.echo(for_terminal(f"replaces {', '.join(listed)}"))
        if wait:
            _follow(asked)


@app.command()
@expanded
def status(
    controller: ControllerOption = DEFAULT_CONTROLLER,
    wait: WaitOption = True,
    *,
    given: secure.Options,
) -> None:
    """Follow the rolling restart that is under way, or say how the last one ended.

    Exit codes: 0 all are replaced, 3 there was none, 4 it has failed or was
    stopped, or the controller gives no answer.

    Example: stream2llm rollout status
    """
    with errors_as_exits():
        asked = Controller(controller, given.security())
        if wait:
            _follow(asked)
        else:
            _Shown().show(_last(asked))


@app.command()
@expanded
def stop(
    controller: ControllerOption = DEFAULT_CONTROLLER,
    *,
    given: secure.Options,
) -> None:
    """Stop a rolling restart: the replica whose turn it is is still replaced.

    Exit codes: 0 it is stopped, or there was none; 4 the controller gives no
    answer.

    Example: stream2llm rollout stop
    """
    with errors_as_exits():
        asked = Controller(controller, given.security())
        names = asked.ask("/rollout/stop", "rollout", {})["rollout"]
        typer.echo(for_terminal(f"not replaced: {', '.join(names) or 'none'}"))


def _last(controller: Controller) -> dict[str, Any]:
    """Returns the last rolling restart; raises NotFoundError without one."""
    last: dict[str, Any] | None = controller.ask("/status", "replicas").get("rollout")
    if last is None:
        raise NotFoundError("there was no rolling restart", reason="NO_ROLLOUT")
    return last


def _follow(controller: Controller) -> None:
    """Returns when all are replaced; prints each change once. Raises UnavailableError otherwise."""
    clock = SystemClock()
    shown = _Shown()
    answered_s = clock.monotonic_s()
    while True:
        try:
            last = _last(controller)
            answered_s = clock.monotonic_s()
        except UnavailableError as error:
            if error.reason != NO_ANSWER or clock.monotonic_s() - answered_s > _ABSENCE_S:
                raise
        else:
            shown.show(last)
            if last["state"] != "running":
                return
        threading.Event().wait(_LOOK_INTERVAL_S)


class _Shown:
    """What was printed of a rolling restart."""

    def __init__(self) -> None:
        self._lines: set[str] = set()
        self._now = ""

    def show(self, last: dict[str, Any]) -> None:
        """Prints what is new; raises UnavailableError for one that has not replaced all."""
        num = len(last["replaced"]) + len(last["left"])
        for name, why in last["no_room"].items():
            self._once(f"{name} gets no stand-in, sessions wait for its successor: {why}")
        for place, name in enumerate(last["replaced"], start=1):
            self._once(f"{name} is replaced ({place} of {num})")
        now = f"{last['left'][0]} is {last['now']}" if last["left"] and last["now"] else ""
        if now and now != self._now and last["state"] == "running":
            typer.echo(for_terminal(now))
            self._now = now
        _require_good(last)

    def _once(self, line: str) -> None:
        if line not in self._lines:
            self._lines.add(line)
            typer.echo(for_terminal(line))


def _require_good(last: dict[str, Any]) -> None:
    not_yet = ", ".join(last["left"]) or "none"
    if last["state"] == "failed":
        message = f"the rolling restart has failed: {last['reason']}; not replaced: {not_yet}"
        raise UnavailableError(message, reason="ROLLOUT_FAILED")
    if last["state"] == "stopped":
        message = f"the rolling restart was stopped; not replaced: {not_yet}"
        raise UnavailableError(message, reason="ROLLOUT_STOPPED")
