"""`stream2llm trace import`: converts other recordings to traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.numbers import finite
from stream2llm.cli.option_groups import expanded
from stream2llm.cli.trace_options import (
    Output,
    ScaleLoad,
    ScaleTokens,
    TraceOptions,
    header_of,
    scale_of,
    show_trace,
    token_counter,
)
from stream2llm.serving.observability.logs import for_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream2llm.workload.traces.format import Item, Scale, Shape
    from stream2llm.workload.traces.imports import BadRow, Importing, Report
    from stream2llm.workload.traces.requests import Streaming

app = typer.Typer(no_args_is_help=True, help="Convert other recordings to traces.")

# All bad rows are counted, but only the first are shown.
SHOWN_BAD_ROWS = 20


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options of the commands that import requests, each of which has its own arrival."""

    max_sessions: Annotated[
        int | None,
        typer.Option(min=1, help="Number of sessions, from the beginning of the recording."),
    ] = None
    documents: Annotated[
        int,
        typer.Option(min=1, help="Number of appends, of equal documents, that bring each prompt."),
    ] = 1
    gap: Annotated[
        float, typer.Option(min=0, callback=finite, help="Seconds from one append to the next.")
    ] = 0.0
    scale_tokens: ScaleTokens = 1.0
    scale_load: ScaleLoad = 1.0


@app.command()
@expanded
def crawler(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="The folder of query_*.csv.")],
    output: Output,
    *,
    options: TraceOptions,
) -> None:
    """The paper's artifact: crawled pages, a file for each question.

    Rows that cannot be used are left out and reported on stderr with file and
    line. Recordings have no arrivals: they are Poisson, or those of a file.

    Example: stream2llm trace import crawler traces/simpleQA -o crawler.jsonl
    """
    from stream2llm.workload.traces.crawler_csv import crawler_sessions

    _import_artifact(context, path, output, crawler_sessions, options, "crawler")


@app.command()
@expanded
def anns(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            help="The JSON map of queries to traces, with retrieved_corpus_content.part.*.json "
            "beside it."
        ),
    ],
    output: Output,
    *,
    options: TraceOptions,
) -> None:
    """The paper's artifact: vector searches whose results get better while they run.

    Rows that cannot be used are left out and reported on stderr with file and
    line. Recordings have no arrivals: they are Poisson, or those of a file.

    Example: stream2llm trace import anns traces/map.json -o anns.jsonl
    """
    from stream2llm.workload.traces.anns_traces import anns_items

    _import_artifact(context, path, output, anns_items, options, "anns")


@app.command()
@expanded
def azure(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="AzureLLMInferenceTrace_*.csv.")],
    output: Output,
    *,
    requests: RequestOptions,
) -> None:
    """The Azure LLM inference traces of 2023 and 2024: times, prompt and answer lengths.

    A prompt comes as one document at the request's time, or as several. Rows that
    cannot be used are left out and reported on stderr with file and line.

    Example: stream2llm trace import azure AzureLLMInferenceTrace_conv.csv -o conv.jsonl
    """
    from stream2llm.workload.traces.requests import azure_sessions

    _import(context, path, output, azure_sessions, requests)


@app.command()
@expanded
def burstgpt(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="BurstGPT_*.csv.")],
    output: Output,
    *,
    requests: RequestOptions,
) -> None:
    """BurstGPT: times, prompt and answer lengths of a ChatGPT and GPT-4 service.

    A prompt comes as one document at the request's time, or as several. Rows that
    cannot be used, requests without an answer among them, are left out and
    reported on stderr with file and line.

    Example: stream2llm trace import burstgpt BurstGPT_1.csv --max-sessions 1000 -o burst.jsonl
    """
    from stream2llm.workload.traces.requests import burstgpt_sessions

    _import(context, path, output, burstgpt_sessions, requests)


@app.command()
@expanded
def mooncake(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A trace of Mooncake, JSON Lines.")],
    output: Output,
    block_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that each of a request's hash_ids stands for.")
    ] = 512,
    *,
    requests: RequestOptions,
) -> None:
    """Mooncake's traces: times, prompt and answer lengths, and which beginnings prompts share.

    Each block of a prompt is a document; equal blocks are equal text. They come at
    the request's time, or in several appends. Lines that cannot be used are left
    out and reported on stderr with file and line.

    Example: stream2llm trace import mooncake conversation_trace.jsonl -o conversation.jsonl
    """
    from functools import partial

    from stream2llm.workload.traces.mooncake_jsonl import mooncake_items

    importer = partial(mooncake_items, block_tokens=block_tokens)
    _import(context, path, output, importer, requests)


def _import(
    context: typer.Context,
    path: Path,
    output: Path,
    importer: Callable[[Path, Scale, Streaming, Report], Iterator[Item]],
    requests: RequestOptions,
) -> None:
    """Imports a recording of requests."""
    from stream2llm.workload.traces.requests import Streaming, first_sessions

    with errors_as_exits():
        scale = scale_of(requests.scale_tokens, 1.0, requests.scale_load)
        report = _Reporter()
        streaming = Streaming(requests.documents, requests.gap)
        items = first_sessions(importer(path, scale, streaming, report), requests.max_sessions)
        _write(context, path, output, items, report, scale, "the recording", None, None)


def _import_artifact(
    context: typer.Context,
    path: Path,
    output: Path,
    importer: Callable[[Path, Iterator[float], Importing, Report], Iterator[Item]],
    options: TraceOptions,
    shape: Shape,
) -> None:
    """Imports recordings of the paper's artifact."""
    from stream2llm.workload.traces.imports import Importing

    with errors_as_exits():
        count, counted_by = token_counter(options.tokenizer)
        importing, report = Importing(options.scale, count, options.tokens_only), _Reporter()
        items = importer(path, options.times(), importing, report)
        _write(context, path, output, items, report, options.scale, counted_by, options.seed, shape)


def _write(
    context: typer.Context,
    path: Path,
    output: Path,
    items: Iterable[Item],
    report: _Reporter,
    scale: Scale,
    counted_by: str,
    seed: int | None,
    shape: Shape | None,
) -> None:
    from stream2llm.workload.traces.imports import not_empty
    from stream2llm.workload.traces.write import write_trace

    header = header_of(context, str(context.info_name), counted_by, scale, seed, shape)
    write_trace(output, header, not_empty(items, path))
    report.summarize()
    show_trace(output)


class _Reporter:
    """Prints the first bad rows on stderr, and counts all."""

    def __init__(self) -> None:
        self.num_bad = 0

    def __call__(self, problem: BadRow) -> None:
        self.num_bad += 1
        if self.num_bad <= SHOWN_BAD_ROWS:
            typer.echo(for_terminal(f"left out: {problem}"), err=True)

    def summarize(self) -> None:
        if self.num_bad > SHOWN_BAD_ROWS:
            typer.echo(for_terminal(f"left out: {self.num_bad} in all"), err=True)
