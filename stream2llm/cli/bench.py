"""`stream2llm bench`: replays traces against a live cluster, and reports the results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream2llm.api.options import MAX_TTFT_SLO_MS, DocumentOrdering
from stream2llm.cli import security_options as secure
from stream2llm.cli.addresses import DEFAULT_ROUTER, ROUTER_VARIABLE, naming_router, several
from stream2llm.cli.exits import INTERRUPTED, REFUSED, errors_as_exits
from stream2llm.cli.numbers import finite
from stream2llm.cli.option_groups import expanded
from stream2llm.cli.trace_options import TokenizerOption, token_counter
from stream2llm.serving.observability.logs import for_terminal

if TYPE_CHECKING:
    from stream2llm.workload.replay.command import Outcome

app = typer.Typer(
    no_args_is_help=True, help="Replay traces against a live cluster, and report the results."
)

Output = Annotated[
    Path, typer.Option("--output", "-o", help="The folder for all files; created if missing.")
]


@app.command()
@expanded
def replay(
    trace: Annotated[
        Path, typer.Option("--trace", "-t", help="The trace, as `stream2llm trace` writes them.")
    ],
    output: Output,
    address: Annotated[
        list[str] | None,
        typer.Option(
            "--address",
            "-a",
            help="HOST:PORT of a router; several, with commas or repeated, get sessions in turn."
            f"  [default: {DEFAULT_ROUTER}]",
            envvar=ROUTER_VARIABLE,
        ),
    ] = None,
    label: Annotated[
        str, typer.Option(help="The run's name in tables and plots: system, policy.")
    ] = "stream2llm",
    load_scale: Annotated[
        float,
        typer.Option(
            min=1e-6,
            callback=finite,
            help="Multiplies the sessions per second; sessions keep their durations.",
        ),
    ] = 1.0,
    max_sessions: Annotated[
        int | None, typer.Option(min=1, help="Number of sessions, from the beginning of the trace.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest answer.  [default: each session's in the trace, else 128]"
        ),
    ] = None,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos/--stop-at-eos",
            help="Every answer has that many tokens: equal work for all systems.",
        ),
    ] = True,
    ordering: Annotated[
        DocumentOrdering,
        typer.Option(
            help="as_given: documents are laid out as updates list them; stable: they keep their "
            "places, which invalidates less."
        ),
    ] = DocumentOrdering.AS_GIVEN,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout",
            min=0.1,
            callback=finite,
            help="Seconds from a session's opening to its end.",
        ),
    ] = 600.0,
    ttft_slo_ms: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_TTFT_SLO_MS,
            help="Deadline of every session's first token, milliseconds from its seal; the report "
            "says how many met it.",
        ),
    ] = None,
    text_seed: Annotated[
        int,
        typer.Option(
            help="Determines the text for token counts. Use another one for every run on the "
            "same cluster: equal text is found in prefix caches."
        ),
    ] = 0,
    tokenizer: TokenizerOption = None,
    metrics_url: Annotated[
        list[str] | None,
        typer.Option(
            help="HOST:PORT or URL of a prefill worker's metrics, or http://CONTROLLER/sd; may be "
            "repeated. By default those of the workers that the router names. An API key needs the "
            "scope read for them, beside session."
        ),
    ] = None,
    no_metrics: Annotated[
        bool, typer.Option("--no-metrics", help="No timeline, no counts of preemptions.")
    ] = False,
    *,
    given: secure.Options,
) -> None:
    """Replay a trace against a running cluster, in open loop, and report the results.

    Each session is opened at its arrival and gets each event when it is due,
    however slow the cluster is. Writes run.json (for `bench report`),
    summary.json (key names as in `vllm bench serve`), report.md, report.html and
    the figures; prints the tables. Ctrl-C cancels what is open and reports what
    is finished. Exit codes: 0 replayed, 3 refused or no session was answered,
    4 no router answers (try again), 130 interrupted.

    Example: stream2llm bench replay -t crawler.jsonl --load-scale 2 --label lcas -o lcas-2
    """
    from stream2llm.workload.replay.command import Options, replay_to_folder, say_on_stderr

    with errors_as_exits():
        options = Options(
            trace=trace,
            addresses=several(address),
            output=output,
            label=label,
            load_scale=load_scale,
            max_sessions=max_sessions,
            max_tokens=max_tokens,
            ignore_eos=ignore_eos,
            ordering=ordering,
            timeout_s=timeout_s,
            text_seed=text_seed,
            metrics_urls=() if no_metrics else metrics_url,
            security=given.security(),
            ttft_slo_ms=ttft_slo_ms,
        )
        count_tokens, _ = token_counter(tokenizer)
        with naming_router(options.addresses[0]):  # the first one is asked before all begins
            outcome = replay_to_folder(options, count_tokens, say_on_stderr)
        _conclude(outcome)


def _conclude(outcome: Outcome) -> None:
    """Prints tables on stdout and warnings on stderr, and sets the exit code."""
    from stream2llm.workload.report import lateness_warning, summarize, summary_table

    summary = summarize(outcome.run)
    typer.echo(for_terminal(summary_table([summary])))
    typer.echo(for_terminal(f"\n{outcome.page}"))
    for error, count in sorted(summary.errors.items()):
        typer.echo(for_terminal(f"{count:,} sessions failed: {error}"), err=True)
    if warning := lateness_warning(summary):
        typer.echo(for_terminal(f"warning: {warning}"), err=True)
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)
    if not outcome.num_answered:
        raise typer.Exit(REFUSED)


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

    Writes report.html (one self-contained page), report.md, the figures as SVG,
    and one JSON per run with key names as in `vllm bench serve`.
    Prints the page's path. Exit codes: 0 written, 3 a file is no run.

    Example: stream2llm bench report ours/run.json theirs/run.json --ours lcas -o both
    """
    from stream2llm.workload.report import load_run, write_report

    with errors_as_exits():
        runs = [load_run(path) for path in files]
        _require_system(ours, [run.system for run in runs])
        typer.echo(for_terminal(str(write_report(runs, output, ours)[0])))


def _require_system(ours: str | None, systems: list[str]) -> None:
    from stream2llm.api.errors import NotFoundError

    if ours is not None and ours not in systems:
        there = ", ".join(sorted(set(systems)))
        raise NotFoundError(f"no run has the label {ours!r}; there are: {there}", field="--ours")
