"""`stream2llm simulate`: the cluster in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.ordering import DocumentOrdering
from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.numbers import all_finite, finite
from stream2llm.serving.clock import SystemClock

if TYPE_CHECKING:
    from cost_profiles.types import CostProfile
    from stream2llm.simulator.grid import Outcome
    from stream2llm.simulator.paper_runs import Cell

app = typer.Typer(
    no_args_is_help=True,
    help="Run the production scheduler in virtual time, deterministic by seed.",
)

Seed = Annotated[int, typer.Option(min=0, help="Decides everything that is random.")]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Simulations at once; by default one a core.")
]
Memory = Annotated[
    float,
    typer.Option(
        min=0.1, callback=finite, help="KV memory, in times of what the paper's hardware suggests."
    ),
]
OpenTokenBudget = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Token budget of a step without sealed sessions, under srpf; by default the cluster's.",
    ),
]
Progress = Annotated[bool, typer.Option("--progress/--no-progress", help="A line a run on stderr.")]


class HandoverName(StrEnum):
    """When KV crosses to decode."""

    AT_SEAL = "at_seal"
    STREAMED = "streamed"


class ModeName(StrEnum):
    """What becomes of a victim's KV."""

    RECOMPUTE = "recompute"
    SWAP = "swap"
    COST = "cost"


@app.command()
def paper(
    seed: Seed = 1,
    tails: Annotated[
        bool,
        typer.Option("--tails", help="Evict as production does, not whole requests as the paper."),
    ] = False,
    memory: Memory = 1.0,
    processes: Processes = None,
    progress: Progress = True,
) -> None:
    """The paper's whole grid beside what the paper measured on two H200.

    Prints the fitted parameters, and paper, ours and ratio for every number; * marks a
    P50 or P95 that is off by more than 25 %. About a minute on two cores.

    Example: stream2llm simulate paper
    """
    from stream2llm.simulator import grid
    from stream2llm.simulator.h200 import NUM_BLOCKS, load_fit

    with errors_as_exits():
        typer.echo(f"fitted to the non-streaming rows: {load_fit()}")
        typer.echo(f"KV blocks: {int(NUM_BLOCKS * memory):,}\n")
        cells = grid.paper_cells(seed, whole_requests=not tails, memory=memory)
        compared = grid.comparisons(_outcomes(cells, processes, shows=progress))
        typer.echo(f"{grid.table(compared)}\n\n{grid.verdict(compared)}")


@app.command()
def policies(
    policy: Annotated[
        str | None,
        typer.Argument(
            help="The challenger, a name or MODULE:NAME; by default the cluster's default."
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="May be given several times; 1 to 5.")
    ] = None,
    memory: Memory = 1.0,
    open_token_budget: OpenTokenBudget = None,
    processes: Processes = None,
    progress: Progress = True,
) -> None:
    """A policy against the best of fcfs, lcas and mcps in every setting of the paper's grid.

    Exits with 1 where it is worse by more than 3 % (P99.9: 10 %, crawler only). With the
    paper's memory little is evicted, see the column; `--memory` makes it scarce.

    Example: stream2llm simulate policies srpf
    """
    from prefill_worker.policy_loading import find_policy
    from stream2llm.serving.worker_options import PrefillOptions
    from stream2llm.simulator import contest

    with errors_as_exits():
        defaults = PrefillOptions()
        name = find_policy(policy or defaults.policy).name
        cells = contest.cells(
            name,
            tuple(seeds or contest.TEST_SEEDS),
            memory,
            open_token_budget or defaults.open_token_budget,
        )
        found = contest.results(_outcomes(cells, processes, shows=progress), name)
        typer.echo(contest.table(found, name))
        missed = contest.misses(found)
        typer.echo(f"\nworse than the best of the three: {len(missed)} of {len(found)}")
        typer.echo(contest.gains_line(found))
        if missed:
            raise typer.Exit(1)


@app.command()
def orderings(seed: Seed = 1, processes: Processes = None, progress: Progress = True) -> None:
    """Update-mode with documents as given and in the stable order, on the paper's ANNS settings.

    Example: stream2llm simulate orderings
    """
    from stream2llm.simulator import order_effect

    with errors_as_exits():
        found = _outcomes(order_effect.cells(seed), processes, shows=progress)
        typer.echo(order_effect.table(list(found)))


@app.command()
def handover(
    gbit: Annotated[
        list[float] | None,
        typer.Option(
            min=1e-3, callback=all_finite, help="Network, Gbit/s; several; 25, 100 and 400."
        ),
    ] = None,
    seed: Seed = 1,
    progress: Progress = True,
) -> None:
    """KV handed over at the seal and ahead of it: an 8B model on two H200, over several networks.

    Prints the time from the first to the second token, and TTFT. Two minutes.

    Example: stream2llm simulate handover --gbit 50
    """
    from stream2llm.simulator import handover_effect as effect

    with errors_as_exits():
        runs = []
        for cell in effect.cells(gbit or [25.0, 100.0, 400.0], seed):
            if progress:
                typer.echo(f"{cell.shape} {cell.gbit_s:g} Gbit/s {cell.handover}", err=True)
            runs.append((cell, effect.play(cell)))
        typer.echo(effect.table(runs))


@app.command()
def trace(
    path: Annotated[Path, typer.Argument(help="A trace, see `stream2llm trace`.")],
    profile: Annotated[
        str,
        typer.Option(help="A cost profile: a file, or the name of a shipped one without .json."),
    ],
    kv_gib: Annotated[
        float, typer.Option(min=1e-6, callback=finite, help="KV memory of a worker, all ranks.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder for the report.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A name or MODULE:NAME; may be given several times. By default the cluster's default."
        ),
    ] = None,
    preemption: Annotated[ModeName, typer.Option(help="What victims lose.")] = ModeName.COST,
    host_gib: Annotated[
        float, typer.Option(min=0, callback=finite, help="CPU KV offload pool of a worker.")
    ] = 0.0,
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="Of a step; by default the profile's.")
    ] = None,
    open_token_budget: OpenTokenBudget = None,
    prefill: Annotated[int, typer.Option(min=1, help="Prefill workers.")] = 1,
    decode: Annotated[int, typer.Option(min=0, help="Decode workers.")] = 0,
    output_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of each answer; by default what the trace says, else 1. Without decode workers "
            "all answers end with their first token.",
        ),
    ] = None,
    network_gbit: Annotated[
        float,
        typer.Option(min=1e-3, callback=finite, help="From prefill to one decode worker, Gbit/s."),
    ] = 100.0,
    front_ms: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="From a client to the engine, with tokenizing."),
    ] = 0.0,
    ordering: Annotated[
        DocumentOrdering, typer.Option(help="How updates are laid out.")
    ] = DocumentOrdering.AS_GIVEN,
    handover: Annotated[
        HandoverName, typer.Option(help="Whether KV crosses to decode ahead of the seal.")
    ] = HandoverName.AT_SEAL,
    not_streamed: Annotated[
        bool, typer.Option("--not-streamed", help="Also without streaming, for comparison.")
    ] = False,
) -> None:
    """A trace on a cluster that a cost profile describes.

    Example: stream2llm simulate trace crawler.jsonl --profile h100-sxm-80g_llama-3.1-8b_tp1
    --kv-gib 40 --prefill 2 --policy srpf --policy fcfs --not-streamed --output report
    """
    from cost_profiles.decision import Mode
    from prefill_worker.policy_loading import find_policy
    from stream2llm.serving.worker_options import PrefillOptions
    from stream2llm.simulator.play_trace import Machine, Way, play_trace, read_tasks
    from stream2llm.simulator.work import with_answers_of
    from stream2llm.workload.report.markdown import report_markdown
    from stream2llm.workload.report.write import write_report

    with errors_as_exits():
        if (output_tokens or 1) > 1 and not decode:
            raise InvalidRequestError(
                "--output-tokens above 1 needs --decode 1 or more", field="decode"
            )
        defaults = PrefillOptions()
        machine = Machine(
            _profile(profile),
            kv_gib,
            host_gib,
            token_budget,
            prefill,
            decode,
            front_ms / 1000,
            network_gbit,
            open_token_budget=open_token_budget or defaults.open_token_budget,
        )
        asked = read_tasks(path, ordering)
        if output_tokens is not None or not decode:
            asked = with_answers_of(asked, output_tokens or 1)
        mode = Mode(preemption.value)
        ways = [
            Way(
                find_policy(name).name,
                mode,
                handover=handover.value,
            )
            for name in policy or [defaults.policy]
        ]
        if not_streamed:
            ways.append(Way("default", mode, streams=False))
        runs = [play_trace(machine, way, asked, path.stem) for way in ways]
        typer.echo(report_markdown(runs))
        if output is not None:
            for written in write_report(runs, output):
                typer.echo(f"written: {written}", err=True)


def _profile(name: str) -> CostProfile:
    from cost_profiles.load import load_profile, shipped_profile

    return load_profile(Path(name)) if Path(name).is_file() else shipped_profile(name)


def _outcomes(cells: list[Cell], processes: int | None, *, shows: bool) -> Iterator[Outcome]:
    """Simulates, and says what is done."""
    from stream2llm.simulator.grid import outcomes, setting_name

    clock = SystemClock()
    began_s = clock.monotonic_s()
    for number, found in enumerate(outcomes(cells, processes), 1):
        if shows:
            cell = found.cell
            typer.echo(
                f"{number}/{len(cells)} {setting_name(cell.setting)} {cell.system} seed {cell.seed}"
                f" ({clock.monotonic_s() - began_s:.0f} s)",
                err=True,
            )
        yield found
