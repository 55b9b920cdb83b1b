"""Recompute, swap, or whichever costs less: seconds of one crawl under pressure.

Real engine, prefix caching off and on, KV memory for half of the peak, and three
links to the host: the plain copy, in which swapping wins always; one over which
copying costs several times what computing again does; and one with a fixed cost
for each copy, over which swapping pays for large victims and not for small ones.
Costs are those of production: a profile measured over that link when the engine
has started, corrected by what every run observes, from the profile on in each run.
Every round plays all of them one after the other.

`--check` fails unless `cost` takes at most 1.10 of the time of the better of the
other two over the fast and over the slow link (medians). A run's time is what the engine's
one thread computed and what it waited for the link. That is what a clock shows
on a quiet machine; beside other work a clock shows how much that is, and equal runs were
up to three times apart.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group

from cost_profiles.correction import CorrectedCostModel
from cost_profiles.model import CostModel
from experiments.pressure import (
    BLOCK_SIZE,
    COST,
    NAIVE,
    RECOMPUTE,
    SWAP,
    TOKEN_BUDGET,
    Outcome,
    PressureEngine,
    Way,
    in_a_process,
    peak_blocks,
    workload,
)
from experiments.quick_profile import measure_recompute, measure_swap, profile_of
from prefill_worker.block_copy import BlockCopier
from prefill_worker.swap_connector import SwapConnector, find_connector
from prefill_worker.swap_jobs import CopyJob, Direction, JobResults, StepJobs
from stream2llm.workload.table import Table, markdown

SEED = 1
ROUNDS = 5
MEMORY_SHARE = 0.5
BOUND = 1.10
CHECKED_LINKS = ("fast", "slow")
RECOMPUTE_BUDGET_S = 15.0
SWAP_BUDGET_S = 8.0
# A victim in the middle of the crowd: where a copy's cost is set against recompute.
TYPICAL_CONTEXT = 512
WAYS: Mapping[str, Way] = {"recompute": RECOMPUTE, "swap": SWAP, "cost": COST, "naive": NAIVE}
# These copy nothing, so the link is nothing to them: they run once a round.
WITHOUT_COPIES = ("recompute", "naive")


@dataclass(frozen=True, slots=True)
class Link:
    """The time that a link adds to a copy in one direction."""

    per_copy_s: float = 0.0
    per_block_s: float = 0.0

    def seconds(self, jobs: Sequence[CopyJob]) -> float:
        """Seconds that it adds to these jobs, one after the other."""
        num_blocks = sum(len(job.slots) for job in jobs)
        return len(jobs) * self.per_copy_s + num_blocks * self.per_block_s


class ThrottledCopier:
    """A `BlockCopier` behind a slow link, where KV and CPU KV offload pool are one memory.

    Each job waits beside what it takes anyway, and says so in the times that it reports. So
    profiles that are measured and costs that are learned are those of the slow link.
    """

    def __init__(self, copier: BlockCopier, link: Link) -> None:
        self._copier = copier
        self._link = link
        # Since the last results, and in all.
        self._waited_s = dict.fromkeys(Direction, 0.0)
        self.total_waited_s = 0.0

    def start(self, jobs: StepJobs) -> None:
        """Copies, and waits for what the link would still take."""
        self._copier.start(jobs)
        for direction, batch in ((Direction.OUT, jobs.outs), (Direction.IN, jobs.ins)):
            if batch:
                waited_s = _wait(self._link.seconds(batch))
                self._waited_s[direction] += waited_s
                self.total_waited_s += waited_s

    def take_results(self, *, wait: bool) -> JobResults:
        """The copier's, with the waits in its times."""
        results = self._copier.take_results(wait=wait)
        results.times = {
            batch: time._replace(seconds=time.seconds + self._waited_s[time.direction])
            for batch, time in results.times.items()
        }
        self._waited_s = dict.fromkeys(Direction, 0.0)
        return results


def _wait(seconds: float) -> float:
    """Sleeps, because a device that copies leaves the cores alone; how long it really took."""
    started_s = time.perf_counter()
    if seconds > 0:
        time.sleep(seconds)
    return time.perf_counter() - started_s


@contextmanager
def throttled(link: Link) -> Iterator[ThrottledCopier]:
    """This process's engine copies over that link meanwhile."""
    connector = find_connector(get_kv_transfer_group(), SwapConnector)
    assert connector is not None, "the engine of this process does not swap"
    copier = connector._copier
    assert copier is not None, "the engine has not started"
    connector._copier = slow = ThrottledCopier(copier, link)
    try:
        yield slow
    finally:
        connector._copier = copier


@dataclass(frozen=True, slots=True)
class Setup:
    """A link to the host and what the scheduler believes of it."""

    link: Link
    costs: CostModel


@dataclass(frozen=True, slots=True)
class Run:
    """One run over a link."""

    outcome: Outcome
    waited_s: float

    @property
    def seconds(self) -> float:
        """CPU seconds, and those that it waited for the link."""
        return self.outcome.cpu_s + self.waited_s


def links(block_s: float) -> dict[str, Link]:
    """By name; `block_s` is what computing a typical block takes."""
    return {
        "fast": Link(),
        # There and back: four times what computing it again takes.
        "slow": Link(per_block_s=2 * block_s),
        # There and back: half of it, and as much as four blocks for each copy; even at eight.
        "middle": Link(per_copy_s=2 * block_s, per_block_s=block_s / 4),
    }


def setups(engine: PressureEngine) -> dict[str, Setup]:
    """Measures a profile over each link."""
    recompute = measure_recompute(engine.local, RECOMPUTE_BUDGET_S)
    fast = profile_of(engine.local, recompute, measure_swap(engine.local, SWAP_BUDGET_S))
    seconds = CostModel(fast).recompute_s(TYPICAL_CONTEXT, TYPICAL_CONTEXT + TOKEN_BUDGET)
    found = {}
    for name, link in links(seconds * BLOCK_SIZE / TOKEN_BUDGET).items():
        with throttled(link):
            swap = measure_swap(engine.local, SWAP_BUDGET_S)
        found[name] = Setup(link, CostModel(profile_of(engine.local, recompute, swap)))
    return found


def crossing(costs: CostModel) -> int | None:
    """The fewest blocks of a typical victim from which on swapping is cheaper."""
    for num_blocks in range(1, 128):
        tokens = num_blocks * BLOCK_SIZE
        begin = TYPICAL_CONTEXT
        swap_s = costs.swap_out_s(num_blocks) + costs.swap_in_s(num_blocks)
        if swap_s < costs.recompute_s(begin, begin + tokens):
            return num_blocks
    return None


def plan_of_a_round(found: Mapping[str, Setup]) -> Iterator[tuple[str, str]]:
    """Link and way of each run, so that those that are compared are neighbours."""
    for link in found:
        for way in ("swap", "cost"):
            yield link, way
        for way in WITHOUT_COPIES[:1] if link != "fast" else WITHOUT_COPIES:
            yield link, way


def play(prefix_caching: bool) -> dict[str, Any]:
    """All runs on one engine, as plain values."""
    sessions = workload(SEED)
    num_blocks = round(MEMORY_SHARE * peak_blocks(sessions))
    engine = PressureEngine(num_blocks, prefix_caching=prefix_caching)
    found = setups(engine)
    engine.run(sessions, SWAP, num_blocks)  # first steps of every shape are slow
    runs: dict[str, list[Run]] = defaultdict(list)
    for _ in range(ROUNDS):
        for link, way in plan_of_a_round(found):
            setup = found[link]
            costs = CorrectedCostModel(setup.costs)
            with throttled(setup.link) as copier:
                outcome = engine.run(sessions, WAYS[way], num_blocks, costs)
            runs[f"{link} {way}"].append(Run(outcome, copier.total_waited_s))
    engine.close()
    return {
        "blocks": num_blocks,
        "crossing": {name: crossing(setup.costs) for name, setup in found.items()},
        "runs": {name: figures(each) for name, each in runs.items()},
    }


def figures(runs: list[Run]) -> dict[str, Any]:
    """Medians of one way's runs."""
    outcomes = [each.outcome for each in runs]
    return {
        "seconds": [each.seconds for each in runs],
        "clock": median(each.seconds for each in outcomes),
        "recomputed": median(each.recomputed for each in outcomes),
        "preemptions": median(each.preemptions for each in outcomes),
        "swapped": median(each.swapped_share for each in outcomes),
        "mean_ttft_s": median(each.mean_ttft_s for each in outcomes),
        "p95_ttft_s": median(each.p95_ttft_s for each in outcomes),
    }


def ratio(runs: Mapping[str, Mapping[str, Any]], link: str, way: str) -> float:
    """Time of a way to that of the better of recompute and swap, over that link."""
    seconds: dict[str, float] = {name: median(row["seconds"]) for name, row in runs.items()}
    better = min(seconds[f"{link} {each}"] for each in ("recompute", "swap"))
    return seconds[f"{link} {way}"] / better


def table_of(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each way over each link."""
    titles = ["link", "way", "time (least-most)", "to the better", "by the clock", "recomputed"]
    titles += ["victims", "swapped", "TTFT mean", "P95"]
    return Table(titles, [_cells(runs, *name.split()) for name in runs], 2)


def _cells(runs: Mapping[str, Mapping[str, Any]], link: str, way: str) -> list[str]:
    row = runs[f"{link} {way}"]
    seconds = row["seconds"]
    return [
        link,
        way,
        f"{median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})",
        f"{ratio(runs, link, way):.2f}",
        f"{row['clock']:.2f} s",
        f"{row['recomputed']:,.0f}",
        f"{row['preemptions']:.0f}",
        f"{row['swapped']:.0%}",
        f"{row['mean_ttft_s']:.3f} s",
        f"{row['p95_ttft_s']:.3f} s",
    ]


def main(args: Namespace) -> Iterator[str]:
    """Both tables, each from a process of its own: vLLM keeps global state."""
    for caching in (False, True):
        result = in_a_process(play, caching)
        print(
            f"\nprefix caching {'on' if caching else 'off'}, {result['blocks']} blocks;"
            f" medians of {ROUNDS} runs\n"
            f"swapping is cheaper from so many blocks on: {result['crossing']}\n"
            f"{markdown(table_of(result['runs']))}",
            flush=True,
        )
        for link in CHECKED_LINKS:
            if (found := ratio(result["runs"], link, "cost")) > BOUND:
                yield f"caching {caching}, {link}: {found:.2f}"
