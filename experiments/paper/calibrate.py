"""Fits the simulator's H200 to the paper's non-streaming rows; replaces data/h200_fit.json.

Least squares of log(simulated / published) over P50, P95, P99 (half weight) and
P99.9 (quarter: it is the fourth largest of 4,322, or the largest of 500) of NS at all
loads, mean of several seeds, damped Gauss-Newton steps in the logarithm of each
parameter. The streaming rows are not looked at.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, fields
from math import log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.paper.h200 import Fit, save_fit
from experiments.paper.published import NOT_STREAMED, QUANTILES, Published, published
from experiments.paper.runs import Cell, play, ttfts_s

WEIGHTS: Final = {"p50": 1.0, "p95": 1.0, "p99": 0.5, "p999": 0.25}
# The modelled profile of cost_profiles, roughly.
START = Fit(
    fixed_s=0.006, per_token_s=1.3e-5, per_pair_s=5e-10, per_context_token_s=1e-7, front_s=0.005
)
STEP = 0.05
DAMPING = 0.1

Vector = NDArray[np.float64]


def targets() -> list[Published]:
    """NS at each load and gap factor; eviction modes say nothing about it, so the first counts."""
    found: dict[tuple[str, float, float], Published] = {}
    for each in published():
        if each.system == NOT_STREAMED:
            setting = each.setting
            found.setdefault((setting.shape, setting.rate, setting.gap_factor), each)
    return list(found.values())


def _log_quantiles(cell: Cell, fit: Fit) -> list[float]:
    seconds = ttfts_s(play(cell, fit))
    return [log(seconds[name]) for name in QUANTILES]


class Errors:
    """Weighted log ratios of all targets, as a function of the logarithms of the parameters."""

    def __init__(self, pool: ProcessPoolExecutor, seeds: Sequence[int]) -> None:
        self._pool = pool
        self._seeds = seeds
        self._targets = targets()
        self._weights = np.array([WEIGHTS[name] ** 0.5 for name in QUANTILES])

    def __call__(self, point: Vector) -> Vector:
        """One number for each target and quantile."""
        fit = Fit(*np.exp(point).tolist())
        cells = [Cell(t.setting, NOT_STREAMED, seed) for t in self._targets for seed in self._seeds]
        found = np.array(list(self._pool.map(_log_quantiles, cells, [fit] * len(cells))))
        means = found.reshape(len(self._targets), len(self._seeds), -1).mean(axis=1)
        wanted = [[log(t.ttft_s[name]) for name in QUANTILES] for t in self._targets]
        errors: Vector = ((means - np.array(wanted)) * self._weights).ravel()
        return errors


def fit(errors: Errors, start: Fit, num_rounds: int) -> tuple[Fit, float]:
    """The best found, and its root mean square error; a round that helps nothing ends it."""
    point, damping = np.log(np.array(astuple(start))), DAMPING
    here = errors(point)
    for number in range(num_rounds):
        slopes = np.stack(
            [(errors(point + STEP * axis) - here) / STEP for axis in np.eye(len(point))], axis=1
        )
        normal = slopes.T @ slopes + damping * np.eye(len(point))
        there = point - np.linalg.solve(normal, slopes.T @ here)
        errors_there = errors(there)
        print(f"round {number}: {_rms(here):.4f} -> {_rms(errors_there):.4f}", flush=True)
        print(Fit(*np.exp(there).tolist()), flush=True)
        gain = _rms(here) - _rms(errors_there)
        if gain > 0:
            point, here = there, errors_there
        damping = damping / 3 if gain > 0 else damping * 4
        if abs(gain) < 1e-4:
            break
    return Fit(*np.exp(point).tolist()), _rms(here)


def _rms(errors: Vector) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--start", type=float, nargs=len(fields(Fit)), default=astuple(START), metavar="VALUE"
    )


def main(args: Namespace) -> Sequence[str]:
    with ProcessPoolExecutor(2) as pool:
        found, error = fit(Errors(pool, args.seeds), Fit(*args.start), args.rounds)
    print(f"root mean square of the weighted log ratios: {error:.3f}\n{found}")
    save_fit(found)
    return ()
