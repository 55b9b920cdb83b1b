"""`stream2llm trace`: generates, records, imports and shows workloads to replay."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cli import trace_import
from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.option_groups import expanded
from stream2llm.cli.trace_options import (
    Output,
    TokenizerOption,
    TokensOnly,
    TraceOptions,
    header_of,
    show_trace,
    token_counter,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Make, record, import and check traces of workloads.",
)


def record(
    output: Output,
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help="The application, with its options."),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the trace; without it that of the file.")
    ] = None,
    tokens_only: TokensOnly = False,
    tokenizer: TokenizerOption = None,
) -> None:
    """Run an application, and make a trace of what its sessions stream.

    Recorded are the sessions of the Python client that are sealed, in the command's process and
    in those that it starts: their texts, and when the application sent them. A chat is recorded
    without the text of its template; `generate`, which streams nothing, is not recorded. Ctrl-C
    ends the application, and what it had sealed is the trace.

    Exit codes: that of the command; 3 when nothing was recorded.

    Example: stream2llm trace record -o crawl.jsonl -- python -m examples.crawl
    """
    from stream2llm.client.recording import RECORDING_VARIABLE, read_recording
    from stream2llm.workload.traces.imports import Importing
    from stream2llm.workload.traces.recording import header, sessions_of
    from stream2llm.workload.traces.write import write_trace

    with errors_as_exits(), TemporaryDirectory() as folder:
        count, counted_by = token_counter(tokenizer)
        recording = Path(folder) / "recording.jsonl"
        recording.touch()
        code = _run(command, {**os.environ, RECORDING_VARIABLE: str(recording)})
        sessions = list(
            sessions_of(
                read_recording(recording), Importing(count_tokens=count, tokens_only=tokens_only)
            )
        )
        if not sessions:
            raise InvalidRequestError(f"{command[0]} has sealed no session: nothing is recorded")
        first_line = header(name or output.stem, f"recorded: {' '.join(command)}", counted_by)
        write_trace(output, first_line, sessions)
        show_trace(output)
    raise typer.Exit(code)


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Its exit code, as a shell has it."""
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise InvalidRequestError(f"{command[0]}: cannot be run: {error.strerror}") from error
    with process, _signals_left_to(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _signals_left_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ctrl-C, which a terminal sends to both, and SIGTERM end the application, not the recording."""
    handlers = {
        signal.SIGINT: lambda *_: None,
        signal.SIGTERM: lambda *_: process.terminate(),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


app.add_typer(trace_import.app, name="import")
app.command(context_settings={"allow_interspersed_args": False})(record)


class ShapeName(StrEnum):
    """The published workloads."""

    CRAWLER = "crawler"
    ANNS = "anns"


@app.command()
@expanded
def generate(
    context: typer.Context,
    shape: Annotated[ShapeName, typer.Argument(help="Which published workload.")],
    output: Output,
    queries: Annotated[int, typer.Option("--queries", "-n", min=1, help="Sessions.")] = 500,
    *,
    options: TraceOptions,
) -> None:
    """Make a trace with the quantiles of a published workload, and print how well it fits.

    crawler appends web pages, anns updates the list of a vector search. The text is
    made of sentences of Python's own help. The same options give the same file. The
    fit is that of the file, scaled back.

    Example: stream2llm trace generate crawler -n 200 --scale-tokens 0.05 -o crawler.jsonl
    """
    from stream2llm.workload.traces import generate as generator
    from stream2llm.workload.traces.arrivals import first
    from stream2llm.workload.traces.text import TextMaker
    from stream2llm.workload.traces.write import write_trace

    with errors_as_exits():
        source = str(options.arrivals or options.delays or "random arrivals")
        times = first(queries, options.times(), source)
        count, counted_by = token_counter(options.tokenizer)
        maker = None if options.tokens_only else TextMaker(count)
        scale, seed = options.scale, options.seed
        sessions = generator.generate(shape.value, times, seed, scale, maker)
        header = header_of(context, shape.value, counted_by, scale, seed, shape.value)
        write_trace(output, header, sessions)
        show_trace(output)


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A trace.")]) -> None:
    """Check a trace, summarise it, and compare it with the workload that it resembles.

    Exit codes: 0 it is valid, 3 it is not; the error names line and key.

    Example: stream2llm trace show crawler.jsonl
    """
    with errors_as_exits():
        show_trace(path)
