"""Victims that lose their tail against victims that lose everything: tokens computed twice.

Real engine, KV thrown away and computed again, for KV memory of several sizes: a
quarter, a half and so on of what the sessions that are open at the peak would
hold. Tokens depend on the plans alone, so each variant runs once a seed.

`--check` fails unless, with memory for 85 % of the peak and over all seeds, tail
eviction recomputes at most 0.6 of whole-request eviction without a prefix cache,
and no more than it with one. With much less memory the ratio says little about
tails: then nearly all of an idle session has to go, whichever way.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping

from experiments.pressure import (
    NAIVE,
    RECOMPUTE,
    WHOLE,
    PressureEngine,
    Way,
    in_a_process,
    peak_blocks,
    workload,
)
from stream2llm.workload.table import Table, markdown

SEEDS = (1, 2, 3)
SHARES = (0.25, 0.5, 0.625, 0.75, 0.85, 0.95)
CHECKED_SHARE = 0.85
# At most so much of what whole-request eviction recomputes, without and with a prefix cache.
BOUNDS = {False: 0.6, True: 1.0}
VARIANTS: Mapping[str, Way] = {"tail": RECOMPUTE, "whole": WHOLE, "naive": NAIVE}

# Variant to tokens computed again, all seeds.
Row = dict[str, int]


def rows(prefix_caching: bool) -> dict[float, Row]:
    """By share of the peak; on an engine of its own."""
    workloads = [workload(seed) for seed in SEEDS]
    peaks = [peak_blocks(sessions) for sessions in workloads]
    engine = PressureEngine(round(max(SHARES) * max(peaks)), prefix_caching=prefix_caching)
    table: dict[float, Row] = {}
    for share in SHARES:
        table[share] = dict.fromkeys(VARIANTS, 0)
        for sessions, peak in zip(workloads, peaks, strict=True):
            for name, way in VARIANTS.items():
                outcome = engine.run(sessions, way, round(share * peak))
                table[share][name] += outcome.recomputed
    engine.close()
    return table


def ratio(row: Row) -> float:
    """What tail eviction recomputes of what whole-request eviction does."""
    return row["tail"] / max(row["whole"], 1)


def table_of(shares: Mapping[float, Row]) -> Table:
    """For each share of the peak what the variants compute again."""
    rows = [
        [str(share), *(f"{row[name]:,}" for name in VARIANTS), f"{ratio(row):.2f}"]
        for share, row in shares.items()
    ]
    return Table(["memory / peak", *VARIANTS, "tail / whole"], rows)


def main(args: Namespace) -> Iterator[str]:
    """Both tables, each from a process of its own: vLLM keeps global state."""
    for caching in (False, True):
        found = in_a_process(rows, caching)
        print(f"\nprefix caching {'on' if caching else 'off'}: tokens computed again")
        print(markdown(table_of(found)), flush=True)
        if ratio(found[CHECKED_SHARE]) > BOUNDS[caching]:
            yield f"caching {caching}: {ratio(found[CHECKED_SHARE]):.2f}"
