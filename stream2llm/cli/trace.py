"""`stream2llm trace`: generates, records, imports and shows workloads to replay."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stream2llm.cli import trace_import
from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.option_groups import expanded
from stream2llm.cli.trace_options import Output, TraceOptions, header_of, show_trace, token_counter
from stream2llm.cli.trace_record import record

app = typer.Typer(
    no_args_is_help=True,
    help="Make, record, import and check traces of workloads.",
)
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
