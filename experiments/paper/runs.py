"""One cell of the paper's grid, simulated."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cost_profiles.correction import CorrectedCostModel
from cost_profiles.model import CostModel
from experiments.paper.h200 import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    NUM_HOST_BLOCKS,
    TOKEN_BUDGET,
    Fit,
    profile,
)
from experiments.paper.published import NOT_STREAMED, QUANTILES, Setting
from stream2llm.api.ordering import DocumentOrdering
from stream2llm.serving.worker_options import PrefillOptions
from stream2llm.simulator.cluster import Cluster, ClusterSettings
from stream2llm.simulator.prefill import PrefillSettings, PrefillWorker
from stream2llm.simulator.work import Task, not_streamed, tasks, with_longer_gaps
from stream2llm.workload.records import RunRecord
from stream2llm.workload.report.summary import latencies
from stream2llm.workload.traces.arrivals import first, poisson
from stream2llm.workload.traces.format import Scale, Shape
from stream2llm.workload.traces.generate import generate

NUM_QUERIES: Mapping[Shape, int] = {"crawler": 4322, "anns": 500}


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
    # See `prefill.open_token_budget`.
    open_token_budget: int = PrefillOptions().open_token_budget


@lru_cache(maxsize=8)
def workload(
    shape: Shape, rate: float, gap_factor: float, seed: int, ordering: DocumentOrdering
) -> list[Task]:
    """What is asked, whatever the system."""
    count = NUM_QUERIES[shape]
    arrivals = first(count, poisson(rate, random.Random(f"{seed}/arrivals")), "poisson")
    asked = tasks(generate(shape, arrivals, seed, Scale()), ordering)
    return with_longer_gaps(asked, gap_factor) if gap_factor != 1 else asked


def play(cell: Cell, fit: Fit) -> RunRecord:
    """Runs it."""
    setting, shape = cell.setting, cell.setting.shape
    asked = workload(shape, setting.rate, setting.gap_factor, cell.seed, cell.ordering)
    is_streamed = cell.system != NOT_STREAMED
    settings = PrefillSettings(
        int(NUM_BLOCKS * cell.memory),
        BLOCK_SIZE,
        TOKEN_BUDGET[shape],
        NUM_HOST_BLOCKS,
        PrefillOptions(
            policy=cell.system if is_streamed else "default",
            preemption=setting.mode.value,
            open_token_budget=cell.open_token_budget,
        ),
        whole_requests=cell.whole_requests,
    )
    costs = CostModel(profile(fit, TOKEN_BUDGET[shape]))
    worker = PrefillWorker(settings, fit.law.seconds, costs, CorrectedCostModel(costs))
    cluster = Cluster(ClusterSettings(front_s=fit.front_s), [worker])
    return cluster.play(asked if is_streamed else not_streamed(asked), cell.system, shape)


def quantiles_s(run: RunRecord) -> dict[str, float]:
    """TTFT from the seal, by the names of QUANTILES."""
    found = np.percentile(latencies(run, "ttft"), list(QUANTILES.values()))
    return dict(zip(QUANTILES, found.tolist(), strict=True))
