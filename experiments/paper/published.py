"""The figures that the paper published, read from `data/`; times in seconds.

Two H200, Llama-3.1-8B, crawler (4,322 queries) and ANNS (500), no decode: time to
first token from the last chunk. Absolute times are published for not streaming
("NS") and for streaming with plain vLLM's order ("default"); of the policies their
speed-up over NS.

The other figures are those of the public artifact (github.com/rajveerb/stream2llm, folder `tables`,
read on 29 November 2026): preemptions, and tokens invalidated relative to "default". Its
arrivals are files of delays, which numpy makes again from the seed that they name.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import accumulate

import numpy as np

from cost_profiles.decision import Mode
from stream2llm.workload.traces.format import Shape

QUANTILES: Mapping[str, float] = {"p50": 50, "p95": 95, "p99": 99, "p999": 99.9}
NOT_STREAMED = "NS"
POLICIES = ("fcfs", "lcas", "mcps")
_SHAPES: Mapping[str, Shape] = {"crawler": "crawler", "anns": "anns"}
# Seed of the files of delays, by their headers; their first and last lines were compared.
ARRIVAL_SEED = 42


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """The conditions of one row, measured or simulated: queries a second, factor of the gaps."""

    shape: Shape
    rate: float
    gap_factor: float
    mode: Mode
    # Arrivals in bursts (`arrivals.Phases`) instead of the paper's Poisson process.
    bursts: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """One system under one setting; seconds by the names of QUANTILES."""

    setting: Setting
    system: str
    ttft_s: Mapping[str, float]


@cache
def published() -> tuple[Published, ...]:
    """Every system of every row, each once."""
    found: dict[tuple[Setting, str], Published] = {}
    for row in _rows("paper_ttft_h200.csv"):
        setting = _setting(row, float(row["qps"]))
        for system, ttft_s in _systems_of(row):
            found[setting, system] = Published(setting, system, ttft_s)
    return tuple(found.values())


def _rows(name: str) -> list[dict[str, str]]:
    text = (resources.files("experiments.paper") / "data" / name).read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


def _setting(row: Mapping[str, str], rate: float) -> Setting:
    shape = _SHAPES[row["workload"]]
    return Setting(shape, rate, float(row["delay_x"]), Mode(row["eviction"]))


def _systems_of(row: Mapping[str, str]) -> list[tuple[str, dict[str, float]]]:
    not_streamed = {name: float(row[f"baseline_ns_{name}_s"]) for name in QUANTILES}
    default = {name: float(row[f"baseline_stream_{name}_s"]) for name in QUANTILES}
    sped_up = {
        name: seconds / float(row[f"speedup_vs_ns_{name}"])
        for name, seconds in not_streamed.items()
    }
    return [(NOT_STREAMED, not_streamed), ("default", default), (row["policy"].lower(), sped_up)]


def settings() -> list[Setting]:
    """All of them, in the order of the table."""
    return list(dict.fromkeys(each.setting for each in published()))


@dataclass(frozen=True, slots=True)
class Preemptions:
    """Preemptions of one run, and the number of concurrent requests when they happened."""

    recomputed: float
    swapped: float
    requests_p50: float
    requests_p95: float

    @property
    def total(self) -> float:
        """Both ways together."""
        return self.recomputed + self.swapped

    @property
    def swapped_share(self) -> float:
        """Share of those that were copied; 0 where there were none."""
        return self.swapped / self.total if self.total else 0.0


# The load of the settings with slow sources.
PRESSED_RATE: Mapping[Shape, float] = {"crawler": 4.0, "anns": 2.0}


@cache
def published_preemptions() -> Mapping[tuple[Setting, str], Preemptions]:
    """By setting and policy."""
    return {
        (_setting(row, PRESSED_RATE[_SHAPES[row["workload"]]]), row["policy"]): Preemptions(
            *(
                float(row[name])
                for name in ("recomputed", "swapped", "requests_p50", "requests_p95")
            )
        )
        for row in _rows("preemptions_h200.csv")
    }


@cache
def published_invalidations() -> Mapping[tuple[float, str], tuple[float, float, float]]:
    """P50, P95 and mean of a policy's invalidated tokens to those of default, by rate and policy."""
    return {
        (float(row["qps"]), row["policy"]): (
            float(row["p50"]),
            float(row["p95"]),
            float(row["mean"]),
        )
        for row in _rows("invalidations_h200.csv")
    }


def published_arrivals_s(rate: float, count: int) -> list[float]:
    """The arrivals that were replayed, after the beginning of the run."""
    delays = np.random.RandomState(ARRIVAL_SEED).exponential(1 / rate, count)
    return list(accumulate(delays.tolist()))
