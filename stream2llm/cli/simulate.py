"""`stream2llm simulate`: the cluster in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cost_profiles.decision import Mode
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.handover import HandoverMode
from stream2llm.api.options import MAX_TTFT_SLO_MS, DocumentOrdering
from stream2llm.cli.exits import errors_as_exits
from stream2llm.cli.numbers import finite
from stream2llm.serving.observability.logs import for_terminal

if TYPE_CHECKING:
    from cost_profiles.types import CostProfile
    from stream2llm.serving.settings.worker_options import WorkerOptions

app = typer.Typer(
    no_args_is_help=True,
    help="Run the production scheduler in virtual time.",
)

Profile = Annotated[
    str, typer.Option(help="A cost profile: a file, or the name of a shipped one without .json.")
]
KvGib = Annotated[
    float, typer.Option(min=1e-6, callback=finite, help="KV memory of a worker, all ranks.")
]
HostGib = Annotated[
    float | None,
    typer.Option(
        min=0,
        callback=finite,
        help="CPU KV offload pool of a worker; by default `prefill.offload_pool_gib`'s.",
    ),
]
TokenBudget = Annotated[
    int | None, typer.Option(min=1, help="Token budget of a step; by default the profile's.")
]
FrontMs = Annotated[
    float,
    typer.Option(
        min=0, callback=finite, help="Delay from a client to the engine, with tokenizing."
    ),
]
InterTokenTarget = Annotated[
    int | None,
    typer.Option(
        "--inter-token-target-ms",
        min=1,
        help="What a mixed worker's step with answers under way should take at most, as"
        " `mixed.inter_token_target_ms`; by default prefill may fill it.",
    ),
]
OpenStepTarget = Annotated[
    int | None,
    typer.Option(
        "--open-step-target-ms",
        min=1,
        help="Milliseconds that a step without sealed sessions takes at most, under policies that keep sealed ones "
        "apart (srpf); by default `prefill.open_step_target_ms`'s.",
    ),
]


# Without streaming there is nothing to rank by but arrival.
_NON_STREAMING_POLICY = "default"


@app.callback()
def simulate() -> None:
    """Keeps `trace` a command of its own: typer makes an only one the group itself."""


@app.command()
def trace(
    path: Annotated[Path, typer.Argument(help="A trace, see `stream2llm trace`.")],
    profile: Profile,
    kv_gib: KvGib,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder for the report.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A name or MODULE:NAME; may be given several times. By default the cluster's default."
        ),
    ] = None,
    preemption: Annotated[
        Mode | None,
        typer.Option(help="What happens to victims' KV; by default `prefill.preemption`'s."),
    ] = None,
    host_gib: HostGib = None,
    token_budget: TokenBudget = None,
    open_step_target_ms: OpenStepTarget = None,
    prefill: Annotated[
        int | None,
        typer.Option(
            min=1, help="Prefill workers; by default 1, or none where there are mixed ones."
        ),
    ] = None,
    decode: Annotated[int, typer.Option(min=0, help="Decode workers.")] = 0,
    mixed: Annotated[
        int, typer.Option(min=0, help="Mixed workers, which answer what they prefill.")
    ] = 0,
    inter_token_target_ms: InterTokenTarget = None,
    output_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of each answer; by default the trace's, else 1. Where prefill workers have no "
            "decode workers, all answers end with their first token.",
        ),
    ] = None,
    network_gbit: Annotated[
        float,
        typer.Option(
            min=1e-3, callback=finite, help="Link from prefill to one decode worker, Gbit/s."
        ),
    ] = 100.0,
    front_ms: FrontMs = 0.0,
    ttft_slo_ms: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_TTFT_SLO_MS,
            help="Deadline of every session's first token, milliseconds from its seal; the report "
            "says how many meet it.",
        ),
    ] = None,
    ordering: Annotated[
        DocumentOrdering, typer.Option(help="How updates are laid out.")
    ] = DocumentOrdering.AS_GIVEN,
    handover: Annotated[
        HandoverMode | None,
        typer.Option(
            help="Whether KV is transferred to decode before the seal; by default `handover.mode`'s."
        ),
    ] = None,
    non_streaming: Annotated[
        bool,
        typer.Option(
            "--non-streaming",
            help=f"Also without streaming, with the policy `{_NON_STREAMING_POLICY}`, for comparison.",
        ),
    ] = False,
) -> None:
    """A trace on a cluster described by a cost profile.

    Example: stream2llm simulate trace crawler.jsonl --profile h100-sxm-80g_llama-3.1-8b_tp1
    --kv-gib 40 --prefill 2 --policy srpf --policy fcfs --non-streaming --output report
    """
    from prefill_worker.policy_loading import find_policy
    from stream2llm.simulator.play_trace import Machine, Way, play_trace, read_tasks
    from stream2llm.simulator.work import with_answers_of, with_deadlines_of
    from stream2llm.workload.report.markdown import report_markdown
    from stream2llm.workload.report.write import write_report

    with errors_as_exits():
        require_mixed(inter_token_target_ms, has_mixed=mixed > 0)
        num_prefill = (0 if mixed else 1) if prefill is None else prefill
        is_answered = decode > 0 or not num_prefill
        if (output_tokens or 1) > 1 and not is_answered:
            raise InvalidRequestError(
                "--output-tokens above 1 needs --decode 1 or more", field="decode"
            )
        machine = Machine(
            profile_of(profile),
            kv_gib,
            token_budget,
            num_prefill,
            decode,
            mixed,
            front_ms / 1000,
            network_gbit,
        )
        options = options_of(
            preemption=preemption,
            offload_pool_gib=host_gib,
            open_step_target_ms=open_step_target_ms,
            handover=handover,
            inter_token_target_ms=inter_token_target_ms,
        )
        asked = read_tasks(path, ordering)
        if output_tokens is not None or not is_answered:
            asked = with_answers_of(asked, output_tokens or 1)
        asked = with_deadlines_of(asked, ttft_slo_ms)
        ways = [
            Way(options.with_policy(find_policy(name).name))
            for name in policy or [options.prefill.policy]
        ]
        if non_streaming:
            label = f"non-streaming, {_NON_STREAMING_POLICY}"
            unstreamed = options.with_policy(_NON_STREAMING_POLICY)
            ways.append(Way(unstreamed, streams=False, label=label))
        runs = [play_trace(machine, way, asked, path.stem) for way in ways]
        typer.echo(for_terminal(report_markdown(runs)))
        if output is not None:
            for written in write_report(runs, output):
                typer.echo(for_terminal(f"written: {written}"), err=True)


def require_mixed(inter_token_target_ms: int | None, *, has_mixed: bool) -> None:
    """Raises InvalidRequestError for a target without workers that it is for."""
    if inter_token_target_ms is not None and not has_mixed:
        raise InvalidRequestError(
            "--inter-token-target-ms is for mixed workers (--mixed)", field="inter_token_target_ms"
        )


def options_of(
    *,
    handover: HandoverMode | None = None,
    inter_token_target_ms: int | None = None,
    **prefill: Any,
) -> WorkerOptions:
    """The cluster's default settings, but for those that are not None."""
    from stream2llm.serving.settings.worker_options import (
        HandoverOptions,
        PrefillOptions,
        WorkerOptions,
    )

    given = {name: value for name, value in prefill.items() if value is not None}
    return WorkerOptions(
        prefill=PrefillOptions(**given),
        handover=HandoverOptions() if handover is None else HandoverOptions(mode=handover),
        inter_token_target_ms=inter_token_target_ms,
    )


def profile_of(name: str) -> CostProfile:
    """Returns the profile in a file, or the shipped one of that name."""
    from cost_profiles.load import load_profile, shipped_profile

    return load_profile(Path(name)) if Path(name).is_file() else shipped_profile(name)
