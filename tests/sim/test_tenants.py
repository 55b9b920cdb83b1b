"""Tenants beside each other, in virtual time on the production planner; see experiments/tenants.py."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest

from experiments.tenants import GREEDY, HEAVY, LEAST_JAIN, LIGHT, MOST_TIMES_ALONE, jain, play
from stream2llm.api.tenant import TenantShare

UNTIL_S = 12.0


def test_a_light_client_beside_a_heavy_one_waits_at_most_three_times_as_long_as_alone() -> None:
    alone = play([LIGHT], UNTIL_S).ttft_s["light"]
    beside = play([LIGHT, HEAVY], UNTIL_S).ttft_s["light"]
    assert max(beside) <= MOST_TIMES_ALONE * median(alone)
    # Without tenants the heavy one's backlog is waited for.
    assert median(play([LIGHT, HEAVY], UNTIL_S, as_one=True).ttft_s["light"]) > 9 * median(alone)


def test_the_heavy_client_gets_what_the_light_one_leaves() -> None:
    """Shorter steps while both are served cost it a little of its own throughput."""
    alone = play([HEAVY], UNTIL_S).work["heavy"]
    beside = play([LIGHT, HEAVY], UNTIL_S).work
    assert beside["heavy"] + beside["light"] >= 0.75 * alone


def test_equal_weights_are_served_equally() -> None:
    """Short ones, long ones, many, and one that throws most of its work away."""
    assert jain(play(GREEDY, UNTIL_S).work) > LEAST_JAIN
    assert jain(play(GREEDY, UNTIL_S, as_one=True).work) < 0.8


@pytest.mark.parametrize("num_blocks", [1500, 2500])
def test_short_memory_stops_no_tenant(num_blocks: int) -> None:
    """One long session takes 1250 blocks; two do not fit beside each other, nor beside much else."""
    played = play(GREEDY, UNTIL_S, num_blocks=num_blocks)
    assert jain(played.work) > LEAST_JAIN - 0.1
    assert min(map(len, played.ttft_s.values())) >= 2
    alone = play([LIGHT], UNTIL_S, num_blocks=num_blocks).ttft_s["light"]
    beside = play([LIGHT, HEAVY], UNTIL_S, num_blocks=num_blocks).ttft_s["light"]
    assert max(beside) <= MOST_TIMES_ALONE * median(alone)


def test_work_is_served_in_proportion_to_the_weights() -> None:
    weights = {"short": 1.0, "long": 2.0, "many": 4.0, "replaces": 1.0}
    clients = [
        replace(each, tenant=TenantShare(each.tenant.name, weights[each.tenant.name]))
        for each in GREEDY
    ]
    work = play(clients, UNTIL_S).work
    assert jain({name: work[name] / weight for name, weight in weights.items()}) > LEAST_JAIN
