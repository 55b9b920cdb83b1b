"""Stock vLLM and Stream2LLM on the same traces, one after the other.

Writes each run, a report for each cell and the verdicts into a folder, the verdicts also
when it fails or is interrupted.
"""

from __future__ import annotations

import asyncio
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from experiments.baselines.cells import (
    COMPARISONS,
    FULL_REPETITIONS,
    FULL_SESSIONS,
    LOAD_NAMES,
    QUICK_REPETITIONS,
    QUICK_RETRIEVAL,
    QUICK_SESSIONS,
    SHAPES,
    Options,
    ours,
    reported_policy,
)
from experiments.baselines.runner import Runner
from experiments.baselines.verdicts import pooled, verdict_tables
from prefill_worker.policy import POLICIES
from stream2llm.api.errors import InvalidRequestError, Stream2LLMError
from stream2llm.models.catalogue import PresetName
from stream2llm.models.store import ensure_random_llama
from stream2llm.serving.system.signals import catch_signals
from stream2llm.workload.records import RunRecord
from stream2llm.workload.report import write_report

Name = TypeVar("Name", bound=str)

# docs/benchmarks.md says why not the larger one.
MODELS: tuple[PresetName, ...] = ("shallow", "fast")


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="small cells, once")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*COMPARISONS, *SHAPES, *LOAD_NAMES),
        default=(),
        help="these comparisons, shapes and loads",
    )
    parser.add_argument("--policies", nargs="+", choices=tuple(POLICIES), default=tuple(POLICIES))
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="a random Llama")
    parser.add_argument("--sessions", type=int, help="of each run")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--output", type=Path, default=Path("baselines"), help="a folder")


def options_of(args: Namespace) -> Options:
    """What the command line chose; raises InvalidRequestError where that is nothing to run."""
    comparisons, loads = _chosen(COMPARISONS, args.only), _chosen(LOAD_NAMES, args.only)
    if "engine" not in comparisons and "heavy" not in loads:
        raise InvalidRequestError("whole systems are compared at heavy load", field="only")
    return Options(
        output=args.output,
        model=args.model,
        retrieval_factor=QUICK_RETRIEVAL if args.quick else 1.0,
        policies=tuple(args.policies),
        num_sessions=args.sessions or (QUICK_SESSIONS if args.quick else FULL_SESSIONS),
        repetitions=args.repetitions or (QUICK_REPETITIONS if args.quick else FULL_REPETITIONS),
        comparisons=comparisons,
        shapes=_chosen(SHAPES, args.only),
        loads=loads,
        cores=two_cores(),
    )


def _chosen(known: tuple[Name, ...], only: Sequence[str]) -> tuple[Name, ...]:
    """Those of a kind that were named; all, when none was."""
    return tuple(each for each in known if each in only) or known


def two_cores() -> tuple[int, int]:
    """Two that this process may use; raises Stream2LLMError when there is one only."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise Stream2LLMError("two cores are needed: one for the driver, one for the engine")
    return cores[0], cores[1]


def write_all(runs: Sequence[RunRecord], output: Path, policy: str) -> Path:
    """Verdicts of all, and a report of each cell that compares this policy of ours with the rest."""
    records = pooled(runs)
    for trace in dict.fromkeys(record.trace for record in records):
        cell = [record for record in records if record.trace == trace]
        write_report(cell, output / trace.replace(" ", "-"), ours(policy))
    verdicts = output / "verdicts.md"
    verdicts.write_text(verdict_tables(runs), encoding="utf-8")
    return verdicts


def main(args: Namespace) -> Sequence[str]:
    """Everything, with the verdicts of what there is, however it ends."""
    options = options_of(args)
    runner = Runner(options, ensure_random_llama(options.model))
    catch_signals()
    try:
        asyncio.run(runner.run())
    finally:
        if runner.runs:
            verdicts = write_all(runner.runs, options.output, reported_policy(options.policies))
            print(f"{verdicts}:\n{verdicts.read_text(encoding='utf-8')}", flush=True)
    return ()
