"""One cell of the paper's grid, simulated."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean

import numpy as np

from cost_profiles.correction import CorrectedCostModel
from cost_profiles.decision import Mode
from cost_profiles.model import CostModel
from experiments.paper import azure
from experiments.paper.h200 import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    NUM_HOST_BLOCKS,
    TOKEN_BUDGET,
    Fit,
    profile,
)
from experiments.paper.published import (
    NOT_STREAMED,
    QUANTILES,
    Setting,
    published_arrivals_s,
)
from stream2llm.api.options import DocumentOrdering
from stream2llm.serving.settings.worker_options import PrefillOptions
from stream2llm.simulator.cluster import Cluster, ClusterSettings
from stream2llm.simulator.prefill import PrefillWorker
from stream2llm.simulator.prefill_settings import PrefillSettings
from stream2llm.simulator.work import Task, not_streamed, tasks
from stream2llm.workload.records import RunRecord
from stream2llm.workload.report.summary import latencies
from stream2llm.workload.traces.arrivals import Phases, Poisson, first
from stream2llm.workload.traces.format import Scale, Shape
from stream2llm.workload.traces.generate import generate

# Crawls without a page, 13 of 4,322, were not replayed.
NUM_QUERIES: Mapping[Shape, int] = {"crawler": 4309, "anns": 500}
# The 500 vector searches that were replayed take 4.47 s on average, all 4,997 of them 3.63 s, of
# which 0.54 s are gaps (3.42 of 0.157 s). Gaps are published of all alone; if what passes before the
# first result is as long for the 500, theirs are so many times as long.
REPLAYED_GAPS: Mapping[Shape, float] = {"crawler": 1.0, "anns": (4.47 - 3.63 + 0.54) / 0.54}
# Many bursts.
NUM_IN_BURSTS: Mapping[Shape, int] = {"crawler": 4000, "anns": 1500}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: a system under a setting."""

    setting: Setting
    # A policy, or NOT_STREAMED.
    system: str
    seed: int = 1
    # As the paper evicts; ours takes the tail that is needed.
    whole_requests: bool = True
    ordering: DocumentOrdering = DocumentOrdering.AS_GIVEN
    # KV memory, in times of what the hardware suggests.
    memory: float = 1.0
    # What the setting and the system do not say.
    options: PrefillOptions = field(default_factory=PrefillOptions)
    # The published arrivals, whatever the seed, and REPLAYED_GAPS; else Poisson arrivals, or
    # bursts, by the seed, and the published gaps.
    replays: bool = False
    # So many workers share the load.
    num_workers: int = 1
    # The arrivals of this Azure LLM inference trace, whatever the seed, at the setting's rate,
    # instead of the generator's bursts.
    recording: Path | None = None


@lru_cache(maxsize=8)
def workload(cell: Cell) -> list[Task]:
    """The sessions of a cell, which are the same for every system and preemption mode."""
    return tasks(
        generate(
            cell.setting.shape,
            _arrivals_s(cell),
            cell.seed,
            Scale(),
            delay_factor=cell.setting.gap_factor,
            gap_factor=REPLAYED_GAPS[cell.setting.shape] if cell.replays else 1.0,
        ),
        cell.ordering,
    )


def _arrivals_s(cell: Cell) -> list[float]:
    setting = cell.setting
    count = (NUM_IN_BURSTS if setting.bursts else NUM_QUERIES)[setting.shape]
    if cell.replays:
        return published_arrivals_s(setting.rate, count)
    if cell.recording is not None:
        return azure.arrivals_s(cell.recording, setting.rate, count)
    process = Phases() if setting.bursts else Poisson()
    coming = process.arrivals(setting.rate, random.Random(f"{cell.seed}/arrivals"))
    return first(count, coming, "random arrivals")


def asked(cell: Cell) -> list[Task]:
    """What a cell's system is sent."""
    what_matters = Cell(
        replace(cell.setting, mode=Mode.COST),
        system="",
        seed=cell.seed,
        ordering=cell.ordering,
        replays=cell.replays,
        recording=cell.recording,
    )
    sessions = workload(what_matters)
    return not_streamed(sessions) if cell.system == NOT_STREAMED else sessions


def play(cell: Cell, fit: Fit) -> RunRecord:
    return play_tasks(cell, fit, asked(cell))


def play_tasks(cell: Cell, fit: Fit, tasks: Sequence[Task]) -> RunRecord:
    """Runs a cell with these sessions instead of its own."""
    shape = cell.setting.shape
    costs = CostModel(profile(fit, TOKEN_BUDGET[shape]))
    workers = [
        PrefillWorker(settings_of(cell), fit.law.seconds, costs, CorrectedCostModel(costs))
        for _ in range(cell.num_workers)
    ]
    cluster = Cluster(ClusterSettings(front_s=fit.front_s), workers)
    return cluster.play(tasks, cell.system, shape)


def settings_of(cell: Cell) -> PrefillSettings:
    """Returns the settings of each of its workers."""
    is_streamed = cell.system != NOT_STREAMED
    return PrefillSettings(
        int(NUM_BLOCKS * cell.memory),
        BLOCK_SIZE,
        TOKEN_BUDGET[cell.setting.shape],
        NUM_HOST_BLOCKS,
        cell.options.model_copy(
            update={
                "policy": cell.system if is_streamed else "default",
                "preemption": cell.setting.mode,
            }
        ),
        whole_requests=cell.whole_requests,
    )


def ttfts_s(run: RunRecord) -> dict[str, float]:
    """TTFT from the seal, by the names of QUANTILES, and its "mean"."""
    found = latencies(run, "ttft")
    quantiles = np.percentile(found, list(QUANTILES.values())).tolist()
    return {**dict(zip(QUANTILES, quantiles, strict=True)), "mean": fmean(found)}
