"""What the paper measured: `data/paper_ttft_h200.csv`, read. Seconds.

Two H200, Llama-3.1-8B, crawler (4,322 queries) and ANNS (500), no decode: time to
first token from the last chunk. Absolute times are published for not streaming
("NS") and for streaming with plain vLLM's order ("default"); of the policies their
speed-up over NS.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from cost_profiles.decision import Mode
from stream2llm.workload.traces.format import Shape

QUANTILES: Mapping[str, float] = {"p50": 50, "p95": 95, "p99": 99, "p999": 99.9}
NOT_STREAMED = "NS"
POLICIES = ("fcfs", "lcas", "mcps")
_SHAPES: Mapping[str, Shape] = {"crawler": "crawler", "anns": "anns"}


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What one row was measured under; queries a second, and how much longer gaps are."""

    shape: Shape
    rate: float
    gap_factor: float
    mode: Mode


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
    text = (resources.files("experiments.paper") / "data/paper_ttft_h200.csv").read_text("utf-8")
    for row in csv.DictReader(text.splitlines()):
        setting = Setting(
            _SHAPES[row["workload"]],
            float(row["qps"]),
            float(row["delay_x"]),
            Mode(row["eviction"]),
        )
        for system, ttft_s in _systems_of(row):
            found[setting, system] = Published(setting, system, ttft_s)
    return tuple(found.values())


def _systems_of(row: Mapping[str, str]) -> list[tuple[str, dict[str, float]]]:
    not_streamed = {name: float(row[f"baseline_ns_{name}_s"]) for name in QUANTILES}
    default = {name: float(row[f"baseline_stream_{name}_s"]) for name in QUANTILES}
    sped_up = {
        name: seconds / float(row[f"speedup_vs_ns_{name}"])
        for name, seconds in not_streamed.items()
    }
    return [
        (NOT_STREAMED, not_streamed),
        ("default", default),
        (row["policy"].lower(), sped_up),
    ]


def settings() -> list[Setting]:
    """All of them, in the order of the table."""
    return list(dict.fromkeys(each.setting for each in published()))
