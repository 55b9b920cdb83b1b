"""`stream2llm bench`: traces replayed against a live cluster, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream2llm.cli.exits import errors_as_exits

app = typer.Typer(
    no_args_is_help=True, help="Replay traces against a live cluster, and report what came of it."
)

Output = Annotated[
    Path, typer.Option("--output", "-o", help="The folder for all files; made where it is missing.")
]


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="Runs, as `bench replay` writes run.json.")],
    output: Output,
    ours: Annotated[
        str | None,
        typer.Option(help="Compare this system (a run's label) with the others, with intervals."),
    ] = None,
) -> None:
    """Make one report of several runs: other systems, other loads.

    Writes report.html (one page that needs no other file), report.md, the
    figures as SVG, and one JSON a run with key names as `vllm bench serve`.
    Prints the page's path. Exit codes: 0 written, 3 a file is no run.

    Example: stream2llm bench report ours/run.json theirs/run.json --ours lcas -o both
    """
    from bench.report import load_run, write_report

    with errors_as_exits():
        runs = [load_run(path) for path in files]
        _require_system(ours, [run.system for run in runs])
        typer.echo(write_report(runs, output, ours)[0])


def _require_system(ours: str | None, systems: list[str]) -> None:
    from stream2llm.errors import NotFoundError

    if ours is not None and ours not in systems:
        there = ", ".join(sorted(set(systems)))
        raise NotFoundError(f"no run is of {ours!r}; there are: {there}", field="--ours")
