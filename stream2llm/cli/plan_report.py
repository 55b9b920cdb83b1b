"""Formats the result of `stream2llm plan` as text or as plain values. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml

from cost_profiles.types import Kind
from stream2llm.cli.numbers import seconds_text
from stream2llm.serving.settings.router_spec import GIB
from stream2llm.serving.settings.worker_spec import Role
from stream2llm.simulator.sizing import DecodeDemand, Length, Question, Sizing, Target, Trial
from stream2llm.workload.report.statistics import percent_word

if TYPE_CHECKING:
    from stream2llm.cli.plan import Load

NO_DECODE = (
    "decode: the profile has no times of decode steps, so it does not say how many workers are"
    " needed; --output-tokens and --decode-tokens-per-s give what their memory needs at least"
)


def as_plain(
    question: Question, sizing: Sizing, decode: DecodeDemand | None, load: Load, length: Length
) -> dict[str, Any]:
    """Returns plain values, for JSON."""
    return {
        "role": question.role,
        "load": load.words,
        "length": asdict(length),
        "is_lower_bound": not length.is_enough,
        "target": asdict(question.target),
        "limit": sizing.limit,
        "chosen": sizing.chosen and asdict(sizing.chosen),
        "fewer": sizing.fewer and asdict(sizing.fewer),
        "tried": [asdict(trial) for trial in sizing.tried],
        "decode": decode and asdict(decode),
        "configuration": sizing.chosen and configuration(question, sizing.chosen, decode),
    }


def as_text(
    question: Question, sizing: Sizing, decode: DecodeDemand | None, load: Load, length: Length
) -> str:
    """Returns the report."""
    target = question.target
    percent = percent_word(target.quantile * 100)
    lines = [
        f"load     {load.words}",
        f"worker   {_worker(question)}",
        f"target   P{percent} of TTFT from the seal at most {seconds_text(target.ttft_s)}"
        f"{_token_target(target)}",
        *_short_load(length, load),
        "",
        *_table(sizing, question.role),
        "",
    ]
    role, chosen = question.role, sizing.chosen
    if chosen is None:
        return "\n".join([*lines, f"no number of {role} workers up to {sizing.limit} meets it"])
    held = chosen.kv_peak * chosen.num_workers * question.machine.kv_gib
    lines += [
        f"{role}: {'' if length.is_enough else 'at least '}{chosen.num_workers} workers; their sessions hold at most"
        f" {held:.3g} GiB of KV, {chosen.kv_peak:.0%} of it",
        *([_decode_line(decode)] if role == "prefill" else []),
        "",
        "# configuration",
        yaml.safe_dump(configuration(question, chosen, decode), sort_keys=False),
        "# the same run again",
        *([load.command] if load.command else []),
        _simulation(question, chosen, load),
    ]
    return "\n".join(lines)


def _short_load(length: Length, load: Load) -> list[str]:
    if length.is_enough:
        return []
    more = "a longer trace shows" if load.trace else f"--sessions {length.sessions_wanted} show"
    return [
        f"note     sessions arrive for {length.arrivals_s:.3g} s only, and one is open for"
        f" {length.session_s:.3g} s: the number of workers is a lower bound; {more} how it goes on"
    ]


def _worker(question: Question) -> str:
    profile = question.machine.profile
    kind = profile.recompute.provenance.kind
    note = "" if kind is Kind.MEASURED else "; stream2llm profile measures one"
    size = profile.tensor_parallel_size
    return (
        f"{profile.model.name} in {profile.model.dtype} on {size} x {profile.accelerator.name},"
        f" {question.machine.kv_gib:g} GiB of KV (profile {kind}"
        f" {profile.recompute.provenance.when}{note})"
    )


def _token_target(target: Target) -> str:
    if target.token_s is None:
        return ""
    return f", and of the time between two tokens at most {seconds_text(target.token_s)}"


def _table(sizing: Sizing, role: Role) -> list[str]:
    token = f"{'a token':>9}  " if role == "mixed" else ""
    head = (
        f"{role:>7}  {'P50':>9}  {'P95':>9}  {'P99':>9}  {token}"
        f"{'KV mean':>7}  {'peak':>5}  {'busy':>5}"
    )
    return [head, *(_line(trial, sizing) for trial in sizing.tried)]


def _line(trial: Trial, sizing: Sizing) -> str:
    latencies = (trial.p50_s, trial.p95_s, trial.p99_s, trial.token_s)
    times = "  ".join(f"{seconds_text(each):>9}" for each in latencies if each is not None)
    verdict = "meets it" if trial.meets else ""
    mark = "  <- fewest" if trial == sizing.chosen else f"  {verdict}".rstrip()
    shares = f"{trial.kv_mean:>7.0%}  {trial.kv_peak:>5.0%}  {trial.busy:>5.0%}"
    return f"{trial.num_workers:>7}  {times}  {shares}{mark}"


def _decode_line(decode: DecodeDemand | None) -> str:
    if decode is None:
        return NO_DECODE
    return (
        f"decode: at least {decode.num_workers} workers by memory: {decode.num_answers:.3g} answers at a"
        f" time with {decode.tokens_each:,.0f} tokens each, {decode.tokens_a_worker:,} tokens fit into"
        " a worker; whether they are as fast as that has to be measured"
    )


def configuration(question: Question, chosen: Trial, decode: DecodeDemand | None) -> dict[str, Any]:
    """Returns the part of a cluster's configuration that was simulated."""
    machine, profile, options = question.machine, question.machine.profile, question.way.options
    worker = _worker_part(question)
    budget = machine.token_budget or profile.recompute.token_budget
    section = {
        "replicas": chosen.num_workers,
        **worker,
        "policy": options.prefill.policy,
        "open_step_target_ms": options.prefill.open_step_target_ms,
        "preemption": options.prefill.preemption.value,
        "offload_pool_gib": options.prefill.offload_pool_gib,
        "engine": {**worker["engine"], "max_num_batched_tokens": budget},
    }
    if options.inter_token_target_ms is not None:
        section["inter_token_target_ms"] = options.inter_token_target_ms
    found: dict[str, Any] = {question.role: section}
    if decode is not None:
        found["decode"] = {"replicas": decode.num_workers, **worker}
    return found


def _worker_part(question: Question) -> dict[str, Any]:
    profile = question.machine.profile
    size = profile.tensor_parallel_size
    is_cpu = profile.accelerator.is_called("cpu")
    engine = {
        "dtype": profile.model.dtype,
        "block_size": profile.block_size,
        "tensor_parallel_size": size,
        # Per rank.
        "kv_cache_memory_bytes": int(question.machine.kv_gib * GIB / size),
    }
    return {"num_gpus": 0.0 if is_cpu else float(size), "engine": engine}


def _simulation(question: Question, chosen: Trial, load: Load) -> str:
    machine = question.machine
    options = [
        f"--profile {load.profile}",
        f"--kv-gib {machine.kv_gib:g}",
        f"--{question.role} {chosen.num_workers}",
        f"--policy {question.way.policy}",
        f"--host-gib {question.way.options.prefill.offload_pool_gib:g}",
    ]
    if machine.token_budget:
        options.append(f"--token-budget {machine.token_budget}")
    if machine.front_s:
        options.append(f"--front-ms {machine.front_s * 1000:g}")
    if target_ms := question.way.options.inter_token_target_ms:
        options.append(f"--inter-token-target-ms {target_ms}")
    options.append(f"--output-tokens {question.num_output_tokens}")
    return f"stream2llm simulate trace {load.trace or 'load.jsonl'} {' '.join(options)}"
