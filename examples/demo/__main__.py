"""`make demo`: a cluster of its own on this machine, one question three ways, a crowd, and curl.

Takes one to four minutes on two cores. Whatever happens, also Ctrl-C, it ends
every process that it has started. Exit codes: 0 all three answered, 1 something
failed, 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from examples.command import AddressOption, ConfigOption, errors_as_exits
from stream2llm.serving.system.signals import catch_signals

# Everything else is imported when the signals are caught: importing takes
# seconds, and Ctrl-C shall be quiet then too.


def demo(
    address: AddressOption = None,
    config: ConfigOption = None,
    gap_s: Annotated[
        float, typer.Option(min=0, help="Time between two documents, as if each were fetched.")
    ] = 2.0,
) -> None:
    """Start a local cluster and answer one question over real documents three ways.

    Then fifty sessions come at once, first come first served and by the default policy
    (not with --address). At last one curl asks over OpenAI's HTTP API.

    Example: python -m examples.demo

    Example: python -m examples.demo --address 127.0.0.1:50051 --gap-s 1
    """
    catch_signals()
    with errors_as_exits("demo"):
        _demo(address, config, gap_s)


def _demo(address: str | None, config: Path | None, gap_s: float) -> None:
    from examples.demo.steps import run
    from examples.demo.view import make_view
    from stream2llm.cluster.config_file import chosen_config

    view = make_view()
    try:
        run(view, chosen_config(config), address, gap_s)
    finally:
        view.end()


if __name__ == "__main__":
    typer.run(demo)
