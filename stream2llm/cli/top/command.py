"""The command: looks, shows, waits for the next time or for a key."""

from __future__ import annotations

import shutil
import sys
import threading
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from stream2llm.api.errors import UnavailableError
from stream2llm.cli.addresses import CONTROLLER_VARIABLE, DEFAULT_CONTROLLER
from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.numbers import finite
from stream2llm.cli.top.keys import Keys
from stream2llm.cli.top.render import draw
from stream2llm.cli.top.scrape import scrape
from stream2llm.cli.top.view import view_of
from stream2llm.serving.clock import Clock, SystemClock


def top(
    controller: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the controller; `stream2llm up` prints it.",
            envvar=CONTROLLER_VARIABLE,
        ),
    ] = DEFAULT_CONTROLLER,
    interval_s: Annotated[
        float,
        typer.Option(
            "--interval",
            min=0.05,
            callback=finite,
            help="Seconds between two frames; rates and latencies are of that time.",
        ),
    ] = 2.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame as plain text, after one interval.")
    ] = False,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout", min=0.01, callback=finite, help="Seconds to wait for each process."
        ),
    ] = 2.0,
) -> None:
    """Show a running cluster live: workers, sessions, TTFT, memory and hits.

    Asks the controller for the replicas and each of them for its metrics. What
    gives no answer is shown as such; a controller that goes away is, too, and
    asked again. `q` quits. Exit codes: 0; 4 with --once, when the controller
    gives no answer.

    Example: stream2llm top

    Example: stream2llm top --once --interval 5 --controller 10.0.0.1:8360
    """
    with errors_as_exits():
        clock = SystemClock()
        if once:
            _once(controller, interval_s, timeout_s, clock)
        else:
            _live(controller, interval_s, timeout_s, clock)


def _once(controller: str, interval_s: float, timeout_s: float, clock: Clock) -> None:
    before = scrape(controller, timeout_s, clock, None)
    if not before.controller_problem:
        threading.Event().wait(interval_s)
        after = scrape(controller, timeout_s, clock, before)
        width = shutil.get_terminal_size((100, 24)).columns
        console = Console(width=width, color_system=None, highlight=False)
        with console.capture() as shown:
            console.print(draw(view_of(before, after), controller))
        typer.echo("\n".join(line.rstrip() for line in shown.get().splitlines()))
        return
    raise UnavailableError(before.controller_problem, reason="NO_ANSWER")


def _live(controller: str, interval_s: float, timeout_s: float, clock: Clock) -> None:
    if not sys.stdout.isatty():
        raise typer.BadParameter("standard output is no terminal: use --once")
    console = Console(highlight=False)
    before = now = scrape(controller, timeout_s, clock, None)
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            frame = draw(view_of(before, now), controller, console.height)
            live.update(frame, refresh=True)
            if "q" in keys.wait(interval_s):
                return
            before, now = now, scrape(controller, timeout_s, clock, now)
