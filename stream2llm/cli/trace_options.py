"""Common options of the commands that write traces, and their evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.observability.logs import for_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream2llm.workload.traces.format import Header, Scale, Shape
    from stream2llm.workload.traces.text import CountTokens

Output = Annotated[Path, typer.Option("--output", "-o", help="The trace to write (JSONL).")]
Seed = Annotated[int, typer.Option(help="Determines everything that is random.")]
Bursts = Annotated[
    str | None,
    typer.Option(
        metavar="gamma=CV|phases[=SHARE,SECONDS]",
        help="Instead of Poisson arrivals. gamma=4: gaps with a Gamma distribution and this "
        "coefficient of variation. phases: sessions arrive in phases only, with the dispersion of a "
        "code assistant's public arrivals; or in a share of the time, in phases of a mean length.",
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        help="Count with this model's tokenizer: a name that `stream2llm model list` shows, or a "
        "directory. Without it tokens are estimated from words."
    ),
]
ScaleTokens = Annotated[float, typer.Option(min=1e-6, help="Multiplies prompt lengths.")]
ScaleLoad = Annotated[
    float, typer.Option(min=1e-6, help="Multiplies the sessions per second, also of a file.")
]

TokensOnly = Annotated[
    bool, typer.Option("--tokens-only", help="Token counts instead of text: a small file.")
]


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """Options of the commands that give sessions arrivals, a scale, and text or token counts."""

    seed: Seed = 0
    rate: Annotated[
        float,
        typer.Option(min=1e-6, help="Mean sessions per second; Poisson arrivals without --bursts."),
    ] = 1.0
    bursts: Bursts = None
    arrivals: Annotated[
        Path | None,
        typer.Option(help="Instead of --rate: a file with one time per line, seconds or ISO 8601."),
    ] = None
    delays: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --rate: a file with one delay per line, seconds since the session "
            "before, as poisson_delays_*.txt of the paper's artifact."
        ),
    ] = None
    scale_tokens: ScaleTokens = 1.0
    scale_time: Annotated[
        float, typer.Option(min=1e-6, help="Multiplies times within a session, not the arrivals.")
    ] = 1.0
    scale_load: ScaleLoad = 1.0
    tokens_only: TokensOnly = False
    tokenizer: TokenizerOption = None

    @property
    def scale(self) -> Scale:
        """Returns the scale for a header."""
        return scale_of(self.scale_tokens, self.scale_time, self.scale_load)

    def times(self) -> Iterator[float]:
        """Yields the sessions' arrivals; see `arrivals_of`."""
        return arrivals_of(
            self.arrivals, self.rate, self.seed, self.scale, self.bursts, self.delays
        )


def show_trace(path: Path) -> None:
    """Checks a trace and prints its summary."""
    from stream2llm.workload.traces.summary import summary

    typer.echo(for_terminal(summary(path)))


def scale_of(tokens: float, time: float, load: float) -> Scale:
    """Returns the scale for a header."""
    from stream2llm.workload.traces.format import Scale

    return Scale(tokens=tokens, time=time, load=load)


def header_of(
    context: typer.Context,
    name: str,
    counted_by: str,
    scale: Scale,
    seed: int | None,
    shape: Shape | None,
) -> Header:
    """Returns the first line of a trace that this command writes."""
    from stream2llm.workload.traces.format import SCHEMA, SCHEMA_VERSION, Header

    return Header(
        schema=SCHEMA,
        schema_version=SCHEMA_VERSION,
        name=name,
        provenance=_provenance(context),
        counted_by=counted_by,
        scale=scale,
        seed=seed,
        shape=shape,
    )


def _provenance(context: typer.Context) -> str:
    """Returns the options without the output: equal options give equal files anywhere.

    Bursts have the figures that they stand for: another version may have other defaults.
    """
    from stream2llm.workload.traces.arrivals import process_of

    options = {**context.params}
    del options["output"]
    if options.get("bursts") is not None:
        options["bursts"] = process_of(options["bursts"])
    given = ", ".join(
        f"{name}={value}" for name, value in sorted(options.items()) if value is not None
    )
    command = context.command_path.partition("trace ")[2]
    return f"stream2llm trace {command}: {given}"


def arrivals_of(
    path: Path | None,
    rate: float,
    seed: int,
    scale: Scale,
    bursts: str | None = None,
    delays: Path | None = None,
) -> Iterator[float]:
    """Yields seconds after the trace's beginning: those of a file, else random ones without end."""
    import random

    from stream2llm.workload.traces.arrivals import Poisson, from_delays, from_file, process_of

    given = {"--bursts": bursts, "--arrivals": path, "--delays": delays}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InvalidRequestError(
            f"{names[0]} and {names[1]} exclude each other", field=names[0][2:]
        )
    if path is not None:
        return iter(from_file(path, scale.load))
    if delays is not None:
        return iter(from_delays(delays, scale.load))
    process = Poisson() if bursts is None else process_of(bursts)
    return process.arrivals(rate * scale.load, random.Random(f"arrivals/{seed}"))


def token_counter(name: str | None) -> tuple[CountTokens, str]:
    """Returns a function that counts tokens, and its name for the header."""
    from stream2llm.workload.traces.text import count_by_words

    if name is None:
        return count_by_words, "words"
    from stream2llm.models.token_counter import token_counter as counter_of

    return counter_of(name), f"tokenizer {name}"
