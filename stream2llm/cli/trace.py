"""`stream2llm trace`: workloads to replay, made, imported and looked at."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream2llm.cli.exits import errors_as_exits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.traces.format import Header, Scale
    from bench.traces.imports import BadRow
    from bench.traces.text import CountTokens

app = typer.Typer(
    no_args_is_help=True, help="Make, import and look at traces of streamed-context workloads."
)

# Every bad row counts, not every one is shown.
SHOWN_BAD_ROWS = 20


class ShapeName(StrEnum):
    """The published workloads."""

    CRAWLER = "crawler"
    ANNS = "anns"


Output = Annotated[Path, typer.Option("--output", "-o", help="The trace to write (JSONL).")]
Seed = Annotated[int, typer.Option(help="Decides everything that is random.")]
Rate = Annotated[
    float, typer.Option(min=1e-6, help="Poisson arrivals: sessions a second on average.")
]
Arrivals = Annotated[
    Path | None,
    typer.Option(help="Instead of --rate: a file with a time a line, seconds or ISO 8601."),
]
ScaleTokens = Annotated[float, typer.Option(min=1e-6, help="Multiplies prompt lengths.")]
ScaleTime = Annotated[
    float, typer.Option(min=1e-6, help="Multiplies times within a session, not the arrivals.")
]
ScaleLoad = Annotated[
    float, typer.Option(min=1e-6, help="Multiplies the sessions a second, of a file as well.")
]
TokensOnly = Annotated[
    bool, typer.Option("--tokens-only", help="Token counts instead of text: a small file.")
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        help="Count with this model's tokenizer: a name that `stream2llm model list` shows, or a "
        "directory. Without it tokens are estimated from words."
    ),
]


@app.command()
def generate(
    context: typer.Context,
    shape: Annotated[ShapeName, typer.Argument(help="Which published workload.")],
    output: Output,
    queries: Annotated[int, typer.Option("--queries", "-n", min=1, help="Sessions.")] = 500,
    seed: Seed = 0,
    rate: Rate = 1.0,
    arrivals: Arrivals = None,
    scale_tokens: ScaleTokens = 1.0,
    scale_time: ScaleTime = 1.0,
    scale_load: ScaleLoad = 1.0,
    tokens_only: TokensOnly = False,
    tokenizer: TokenizerOption = None,
) -> None:
    """Make a trace with the quantiles of a published workload, and print how well it fits.

    crawler appends web pages, anns updates the list of a vector search. Text is
    sentences of Python's own help. The same options give the same file. The fit is
    that of the file, scaled back.

    Example: stream2llm trace generate crawler -n 200 --scale-tokens 0.05 -o crawler.jsonl
    """
    from bench.traces import generate as generator
    from bench.traces.text import TextMaker
    from bench.traces.write import write_trace

    with errors_as_exits():
        scale = _scale(scale_tokens, scale_time, scale_load)
        times = _first(queries, arrivals, rate, seed, scale)
        count, counted_by = token_counter(tokenizer)
        maker = None if tokens_only else TextMaker(count)
        sessions = generator.generate(shape.value, times, seed, scale, maker)
        write_trace(output, _header(context, shape, counted_by, scale, seed), sessions)
        _show(output)


@app.command("import")
def import_(
    context: typer.Context,
    shape: Annotated[ShapeName, typer.Argument(help="Which recording.")],
    path: Annotated[
        Path,
        typer.Argument(
            help="crawler: the folder of query_*.csv. anns: the JSON map of queries to traces, "
            "with retrieved_corpus_content.part.*.json beside it."
        ),
    ],
    output: Output,
    seed: Seed = 0,
    rate: Rate = 1.0,
    arrivals: Arrivals = None,
    scale_tokens: ScaleTokens = 1.0,
    scale_time: ScaleTime = 1.0,
    scale_load: ScaleLoad = 1.0,
    tokens_only: TokensOnly = False,
    tokenizer: TokenizerOption = None,
) -> None:
    """Turn recordings of the paper's artifact into a trace, and print how it compares.

    Rows that cannot be used are left out and reported on stderr with file and
    line. Recordings have no arrivals: they are Poisson, or those of a file.

    Example: stream2llm trace import crawler traces/simpleQA -o crawler.jsonl
    """
    from bench.traces.anns_traces import anns_items
    from bench.traces.crawler_csv import crawler_sessions
    from bench.traces.imports import Importing, not_empty
    from bench.traces.write import write_trace

    with errors_as_exits():
        scale = _scale(scale_tokens, scale_time, scale_load)
        count, counted_by = token_counter(tokenizer)
        importing = Importing(scale, count, tokens_only)
        importer = anns_items if shape is ShapeName.ANNS else crawler_sessions
        report = _Reporter()
        items = importer(path, _arrivals(arrivals, rate, seed, scale), importing, report)
        header = _header(context, shape, counted_by, scale, seed)
        write_trace(output, header, not_empty(items, path))
        report.summarize()
        _show(output)


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A trace.")]) -> None:
    """Check a trace, sum it up, and compare it with the workload it is like.

    Exit codes: 0 it is valid, 3 it is not; the error names line and key.

    Example: stream2llm trace show crawler.jsonl
    """
    with errors_as_exits():
        _show(path)


def _show(path: Path) -> None:
    from bench.traces.summary import summary

    typer.echo(summary(path))


class _Reporter:
    """Tells the first bad rows on stderr, counts all."""

    def __init__(self) -> None:
        self.num_bad = 0

    def __call__(self, problem: BadRow) -> None:
        self.num_bad += 1
        if self.num_bad <= SHOWN_BAD_ROWS:
            typer.echo(f"left out: {problem}", err=True)

    def summarize(self) -> None:
        if self.num_bad > SHOWN_BAD_ROWS:
            typer.echo(f"left out: {self.num_bad} in all", err=True)


def _scale(tokens: float, time: float, load: float) -> Scale:
    from bench.traces.format import Scale

    return Scale(tokens=tokens, time=time, load=load)


def _header(
    context: typer.Context, shape: ShapeName, counted_by: str, scale: Scale, seed: int
) -> Header:
    from bench.traces.format import SCHEMA, SCHEMA_VERSION, Header

    return Header(
        schema=SCHEMA,
        schema_version=SCHEMA_VERSION,
        name=shape.value,
        provenance=_provenance(context),
        counted_by=counted_by,
        scale=scale,
        seed=seed,
        shape=shape.value,
    )


def _provenance(context: typer.Context) -> str:
    """The options without the output: equal options give equal files, wherever they are."""
    options = {**context.params}
    del options["output"]
    given = ", ".join(
        f"{name}={value}" for name, value in sorted(options.items()) if value is not None
    )
    return f"stream2llm trace {context.info_name}: {given}"


def _first(count: int, path: Path | None, rate: float, seed: int, scale: Scale) -> list[float]:
    from bench.traces.arrivals import first

    return first(count, _arrivals(path, rate, seed, scale), str(path or "Poisson arrivals"))


def _arrivals(path: Path | None, rate: float, seed: int, scale: Scale) -> Iterator[float]:
    import random

    from bench.traces.arrivals import from_file, poisson

    if path is not None:
        return iter(from_file(path, scale.load))
    return poisson(rate * scale.load, random.Random(f"arrivals/{seed}"))


def token_counter(name: str | None) -> tuple[CountTokens, str]:
    """Counts tokens; and what the header says of it."""
    from bench.traces.text import count_by_words

    if name is None:
        return count_by_words, "words"
    from tokenizers import Tokenizer

    from stream2llm.model_store import resolve_model

    tokenizer = Tokenizer.from_file(str(resolve_model(name) / "tokenizer.json"))

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count, f"tokenizer {name}"
