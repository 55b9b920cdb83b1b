"""Draws the comparison of docs/benchmark-results.md.

One figure with four panels: the share of sessions that wait longer, against TTFT from the
seal, for every system at the highest loads of both shapes, as they are and with longer gaps.
Evictions are production's, one seed.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cost_profiles.decision import Mode
from experiments.paper.grid import setting_name
from experiments.paper.h200 import load_fit
from experiments.paper.published import NOT_STREAMED, Setting
from experiments.paper.runs import Cell, play
from stream2llm.workload.report.plots import Plot, plot_style, to_svg
from stream2llm.workload.report.summary import latencies

SYSTEMS = (NOT_STREAMED, "default", "mcps", "lcas", "fcfs", "srpf")
SETTINGS = (
    Setting("crawler", 4.0, 1.0, Mode.COST),
    Setting("anns", 2.0, 1.0, Mode.COST),
    Setting("crawler", 4.0, 10.0, Mode.COST),
    Setting("anns", 2.0, 30.0, Mode.COST),
)
# Points of each line, down to the share that two sessions are.
NUM_POINTS = 120


def ttfts_s(cell: Cell) -> list[float]:
    """TTFT of every session in seconds, sorted."""
    return sorted(latencies(play(cell, load_fit()), "ttft"))


def draw(found: Mapping[tuple[Setting, str], Sequence[float]]) -> Plot:
    """The figure."""
    from matplotlib.figure import Figure

    with plot_style():
        figure = Figure(figsize=(9, 6.5), layout="constrained")
        panels = figure.subplots(2, 2).ravel()
        for axes, setting in zip(panels, SETTINGS, strict=True):
            for number, system in enumerate(SYSTEMS):
                _line(axes, found[setting, system], system, f"C{number}")
            axes.set(xscale="log", yscale="log", title=setting_name(setting))
        panels[0].legend()
        figure.supxlabel("TTFT from the seal, s")
        figure.supylabel("share of sessions that wait longer")
    return Plot("policies", "TTFT by policy", figure)


def _line(axes: Any, values: Sequence[float], label: str, colour: str) -> None:
    shares = np.geomspace(1.0, 2 / len(values), NUM_POINTS)
    width = 2.2 if label == "srpf" else 1.2
    axes.plot(np.quantile(values, 1 - shares), shares, label=label, color=colour, linewidth=width)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("docs/figures"), help="a folder")


def main(args: Namespace) -> Sequence[str]:
    cells = [Cell(s, system, whole_requests=False) for s in SETTINGS for system in SYSTEMS]
    with ProcessPoolExecutor() as pool:
        found = dict(
            zip(((c.setting, c.system) for c in cells), pool.map(ttfts_s, cells), strict=True)
        )
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "policies.svg"
    path.write_bytes(to_svg(draw(found)))
    print(f"written: {path}")
    return ()
