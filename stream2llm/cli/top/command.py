"""The command: looks, shows, waits for the next time or for a key."""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import threading
import tty
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.live import Live

from stream2llm.api.errors import UnavailableError
from stream2llm.cli import security_options as secure
from stream2llm.cli.addresses import DEFAULT_CONTROLLER, ControllerOption
from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.numbers import finite
from stream2llm.cli.option_groups import expanded
from stream2llm.cli.top.render import draw
from stream2llm.cli.top.scrape import Asked, Scrape, scrape
from stream2llm.cli.top.view import view_of
from stream2llm.serving.observability.logs import for_terminal
from stream2llm.serving.system.clock import SystemClock


class Keys:
    """Reads keys without Enter while it is entered; without a terminal it only waits."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        if sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin.fileno())
            tty.setcbreak(sys.stdin.fileno())
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)

    def wait(self, seconds: float) -> str:
        """Returns what was typed; "" when nothing was for so long."""
        if self._before is None:
            threading.Event().wait(seconds)
            return ""
        ready, _, _ = select.select([sys.stdin.fileno()], [], [], seconds)
        return os.read(sys.stdin.fileno(), 64).decode(errors="replace") if ready else ""


@expanded
def top(
    controller: ControllerOption = DEFAULT_CONTROLLER,
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
    *,
    given: secure.Options,
) -> None:
    """Show a running cluster live: workers, sessions, TTFT, memory.

    Asks the controller for the replicas and each of them for its metrics. What
    gives no answer is shown as such; a controller that goes away is, too, and
    asked again. `q` quits. Exit codes: 0; 3 when the controller refuses
    the credentials; 4 with --once, when it gives no answer.

    Example: stream2llm top

    Example: stream2llm top --once --interval 5 --controller 10.0.0.1:8360
    """
    with errors_as_exits():
        security = given.security()
        asked = Asked(controller, timeout_s, SystemClock(), security)
        if once:
            _once(asked, interval_s)
        else:
            _live(asked, interval_s)


def first_scrape(asked: Asked, *, is_only: bool) -> Scrape:
    """Raises the controller's error, unless it is asked again and may answer then."""
    first = scrape(asked, None)
    error = first.controller_error
    if error is not None and (is_only or not isinstance(error, UnavailableError)):
        raise error
    return first


def _once(asked: Asked, interval_s: float) -> None:
    before = first_scrape(asked, is_only=True)
    threading.Event().wait(interval_s)
    after = scrape(asked, before)
    width = shutil.get_terminal_size((100, 24)).columns
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as shown:
        console.print(draw(view_of(before, after), asked.controller))
    lines = (line.rstrip() for line in shown.get().splitlines())
    typer.echo(for_terminal("\n".join(lines)))


def _live(asked: Asked, interval_s: float) -> None:
    if not sys.stdout.isatty():
        raise typer.BadParameter("standard output is no terminal: use --once")
    console = Console(highlight=False)
    before = now = first_scrape(asked, is_only=False)
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            frame = draw(view_of(before, now), asked.controller, console.height)
            live.update(frame, refresh=True)
            if "q" in keys.wait(interval_s):
                return
            before, now = now, scrape(asked, now)
