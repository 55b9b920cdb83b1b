"""Online calibration of cost profiles that are wrong by a factor of five, on a real engine.

The crawl of `experiments.pressure` is played three times. The scheduler starts from
a profile measured just before, from the same one with every number five times too
high, and five times too low, and corrects each from its own steps and copies. In the
end all three should predict the same seconds. Each curve is compared with that of
the run that began with the right profile, so a slow or busy machine changes little.
In mode `swap`, so that copies are observed too.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from cost_profiles.correction import CALIBRATION_OBSERVATIONS, CorrectedCostModel
from cost_profiles.model import CostModel
from experiments.pressure import SWAP, PressureEngine, in_a_process, peak_blocks, workload
from experiments.quick_profile import measure_recompute, measure_swap, profile_of
from experiments.scaled_costs import ScaledCosts
from stream2llm.workload.table import Table, markdown

WRONG_BY = (1.0, 5.0, 0.2)
CURVES = ("recompute", "swap_out", "swap_in")
# How far apart the calibrated curves may be: steps differ by as much on a busy machine.
ACCEPTED = 1.5
SEED, MEMORY_SHARE = 1, 0.5


def play() -> list[dict[str, Any]]:
    """For each factor: what the learned factors make of it, and from how many observations."""
    sessions = workload(SEED)
    num_blocks = round(MEMORY_SHARE * peak_blocks(sessions))
    engine = PressureEngine(num_blocks, prefix_caching=False)
    right = profile_of(
        engine.local, measure_recompute(engine.local, 20), measure_swap(engine.local, 10)
    )
    engine.run(sessions, SWAP, num_blocks)  # first steps of every shape are slow
    rows = []
    for wrong_by in WRONG_BY:
        costs = CorrectedCostModel(ScaledCosts(CostModel(right), wrong_by, wrong_by))
        engine.run(sessions, SWAP, num_blocks, costs)
        rows.append(
            {"wrong_by": wrong_by}
            | {curve: _calibrated(costs, curve, wrong_by) for curve in CURVES}
        )
    engine.close()
    return rows


def _calibrated(costs: CorrectedCostModel, curve: str, wrong_by: float) -> tuple[float, int]:
    """Predicted seconds per second of the measured profile, and the number of observations."""
    correction = getattr(costs, curve)
    return wrong_by * correction.factor, correction.num_observations


def main(args: Namespace) -> list[str]:
    rows = in_a_process(play)
    titles = ["curve", "began at", "learned", "to the run that began right", "observations"]
    pairs = [(row, curve) for row in rows for curve in CURVES]
    print(markdown(Table(titles, [_cells(row, curve, rows[0]) for row, curve in pairs])))
    worst = max(_error(row, curve, rows[0]) for row, curve in pairs)
    return [f"off by {worst:.2f} x, {ACCEPTED} x are allowed"] if worst > ACCEPTED else []


def _cells(row: dict[str, Any], curve: str, began_right: dict[str, Any]) -> list[str]:
    seconds, num_observations = row[curve]
    ratio = seconds / began_right[curve][0]
    few = "" if num_observations >= CALIBRATION_OBSERVATIONS else " (too few)"
    times = [f"{each:.2f} x" for each in (row["wrong_by"], seconds, ratio)]
    return [curve, *times, f"{num_observations}{few}"]


def _error(row: dict[str, Any], curve: str, began_right: dict[str, Any]) -> float:
    """How far a curve is off, either way; 0 while too little was observed."""
    seconds, num_observations = row[curve]
    ratio: float = seconds / began_right[curve][0]
    return max(ratio, 1 / ratio) if num_observations >= CALIBRATION_OBSERVATIONS else 0.0
