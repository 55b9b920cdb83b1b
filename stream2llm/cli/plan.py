"""`stream2llm plan`: how many workers a load needs, by the simulator."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cli.exits import REFUSED, errors_as_exits
from stream2llm.cli.numbers import finite
from stream2llm.cli.simulate import (
    FrontMs,
    HostGib,
    InterTokenTarget,
    KvGib,
    Profile,
    TokenBudget,
    options_of,
    profile_of,
    require_mixed,
)
from stream2llm.cli.trace import ShapeName
from stream2llm.cli.trace_options import Bursts, Seed, arrivals_of, scale_of
from stream2llm.serving.observability.logs import for_terminal

if TYPE_CHECKING:
    from stream2llm.simulator.play_trace import Machine, Way
    from stream2llm.simulator.sizing import DecodeDemand, Question
    from stream2llm.simulator.work import Task
    from stream2llm.workload.traces.format import Shape


MIN_SESSIONS = 500
# Some minutes of simulation; more have to be asked for.
MAX_SESSIONS = 10_000


@dataclass(frozen=True, slots=True)
class Load:
    """Where the sessions come from, a file or the generator; and for which profile."""

    profile: str
    trace: Path | None
    workload: Shape
    rate: float
    sessions: int
    seed: int
    scale_tokens: float
    bursts: str | None = None

    @property
    def words(self) -> str:
        """For the report."""
        if self.trace is not None:
            return f"trace {self.trace}"
        scaled = "" if self.scale_tokens == 1 else f", tokens times {self.scale_tokens:g}"
        return (
            f"{self.workload}, {self.rate:g} sessions/s, {self.sessions} sessions,"
            f" seed {self.seed}{scaled}{f', bursts {self.bursts}' if self.bursts else ''}"
        )

    @property
    def command(self) -> str:
        """Makes the same trace; empty for one that is a file already."""
        if self.trace is not None:
            return ""
        scaled = "" if self.scale_tokens == 1 else f" --scale-tokens {self.scale_tokens:g}"
        return (
            f"stream2llm trace generate {self.workload} --queries {self.sessions}"
            f" --rate {self.rate:g} --seed {self.seed}{scaled}"
            f"{f' --bursts {self.bursts}' if self.bursts else ''} --tokens-only -o load.jsonl"
        )


def plan(
    profile: Profile,
    kv_gib: KvGib,
    trace: Annotated[
        Path | None, typer.Option(help="The load: a trace, instead of --workload and --rate.")
    ] = None,
    workload: Annotated[
        ShapeName, typer.Option(help="The load: a published workload, generated.")
    ] = ShapeName.CRAWLER,
    rate: Annotated[
        float, typer.Option(min=1e-6, callback=finite, help="Mean sessions per second.")
    ] = 1.0,
    bursts: Bursts = None,
    sessions: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Sessions to play; more make the tail surer. By default 500, or as many as arrive"
            f" in ten times the time that one is open, up to {MAX_SESSIONS}: with fewer the number"
            " of workers is a lower bound.",
        ),
    ] = None,
    seed: Seed = 0,
    scale_tokens: Annotated[
        float, typer.Option(min=1e-6, callback=finite, help="Multiplies prompt lengths.")
    ] = 1.0,
    ttft_s: Annotated[
        float,
        typer.Option("--ttft", min=1e-6, callback=finite, help="Seconds from seal to first token."),
    ] = 1.0,
    quantile: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the sessions that --ttft is for.")
    ] = 0.95,
    mixed: Annotated[
        bool,
        typer.Option(
            "--mixed",
            help="Find the fewest mixed workers: each answers what it prefills, so --output-tokens is"
            " needed.",
        ),
    ] = False,
    inter_token_target_ms: InterTokenTarget = None,
    output_tokens: Annotated[
        float | None,
        typer.Option(min=1, callback=finite, help="Tokens of an answer, for decode or --mixed."),
    ] = None,
    decode_tokens_per_s: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            callback=finite,
            help="Slowest speed of one answer that is wanted, for decode; of mixed workers"
            " --quantile of the answers have it.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most workers to try.")] = 64,
    policy: Annotated[
        str | None, typer.Option(help="A name or MODULE:NAME. By default the cluster's default.")
    ] = None,
    host_gib: HostGib = None,
    token_budget: TokenBudget = None,
    front_ms: FrontMs = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Find the fewest prefill, or mixed, workers that meet a TTFT.

    Plays the load on the simulated cluster, which runs the production scheduler in
    virtual time, with one worker, two, four and so on, then between. Deterministic
    by seed. Decode workers are bounded by memory alone: a cost profile has no
    times of decode steps. Steps of mixed workers are played, by the law of prefill
    steps. Exit codes: 0; 3 no number up to --limit meets it, or an option is wrong.

    Example: stream2llm plan --profile h200_llama-3.1-8b_tp2 --kv-gib 190 --workload
    anns --rate 4 --ttft 1 --quantile 0.95
    """
    from prefill_worker.policy_loading import find_policy
    from stream2llm.cli.plan_report import as_plain, as_text
    from stream2llm.simulator.play_trace import Machine, Way
    from stream2llm.simulator.sizing import fewest, length_of

    with errors_as_exits():
        # Before the search, which may take minutes.
        require_mixed(inter_token_target_ms, has_mixed=mixed)
        _check_answers(output_tokens, decode_tokens_per_s, is_mixed=mixed)
        number = sessions or MIN_SESSIONS
        load = Load(profile, trace, workload.value, rate, number, seed, scale_tokens, bursts)
        machine = Machine(profile_of(profile), kv_gib, token_budget, front_s=front_ms / 1000)
        options = options_of(offload_pool_gib=host_gib, inter_token_target_ms=inter_token_target_ms)
        if policy is not None:
            options = options.with_policy(find_policy(policy).name)
        question = _question(
            machine,
            Way(options),
            (quantile, ttft_s),
            (output_tokens, decode_tokens_per_s),
            is_mixed=mixed,
        )
        load, asked = _asked(load) if sessions or trace else enough(load)
        sizing = fewest(lambda number: question.play(asked, number), limit)
        decode = _decode(question, asked, output_tokens, decode_tokens_per_s)
        shown = (question, sizing, decode, load, length_of(asked))
        typer.echo(
            json.dumps(as_plain(*shown), indent=2) if as_json else for_terminal(as_text(*shown))
        )
        if sizing.chosen is None:
            raise typer.Exit(REFUSED)


def enough(load: Load, most: int = MAX_SESSIONS) -> tuple[Load, list[Task]]:
    """Takes more sessions, up to `most`, where the load would be over too soon."""
    from stream2llm.simulator.sizing import length_of

    load, asked = _asked(load)
    while (number := min(length_of(asked).sessions_wanted, most)) > load.sessions:
        load, asked = _asked(replace(load, sessions=number))
    return load, asked


def _asked(load: Load) -> tuple[Load, list[Task]]:
    from stream2llm.simulator.play_trace import read_tasks
    from stream2llm.simulator.work import tasks
    from stream2llm.workload.traces.generate import generate

    if load.trace is not None:
        return load, read_tasks(load.trace)
    scale = scale_of(load.scale_tokens, time=1.0, load=1.0)
    coming = arrivals_of(None, load.rate, load.seed, scale, load.bursts)
    times = list(islice(coming, load.sessions))
    return load, tasks(generate(load.workload, times, load.seed, scale))


def _question(
    machine: Machine,
    way: Way,
    first_token: tuple[float, float],
    answer: tuple[float | None, float | None],
    *,
    is_mixed: bool,
) -> Question:
    """Asks for a quantile and seconds of TTFT; an answer has so many tokens, so many a second."""
    from stream2llm.simulator.sizing import Question, Target

    output_tokens, tokens_per_s = answer
    if not is_mixed:
        return Question(machine, way, Target(*first_token))
    token_s = None if tokens_per_s is None else 1 / tokens_per_s
    num_tokens = round(output_tokens or 1)
    return Question(machine, way, Target(*first_token, token_s), num_tokens, "mixed")


def _check_answers(
    output_tokens: float | None, tokens_per_s: float | None, *, is_mixed: bool
) -> None:
    if is_mixed:
        if output_tokens is None:
            raise InvalidRequestError(
                "--mixed needs --output-tokens: mixed workers compute the answers, too",
                field="output_tokens",
            )
        return
    if (output_tokens is None) != (tokens_per_s is None):
        raise InvalidRequestError(
            "--output-tokens and --decode-tokens-per-s belong together: give both or none",
            field="output_tokens",
        )


def _decode(
    question: Question, asked: list[Task], output_tokens: float | None, tokens_per_s: float | None
) -> DecodeDemand | None:
    from stream2llm.simulator.sizing import decode_by_memory

    if question.role == "mixed" or output_tokens is None or tokens_per_s is None:
        return None
    return decode_by_memory(question.machine, asked, output_tokens, tokens_per_s)
