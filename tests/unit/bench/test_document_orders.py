"""What updates invalidate by the order of documents: small lists, and the published workload."""

from __future__ import annotations

import random

import pytest

from experiments.document_orders import MODELS, UpdateModel, generated, outcome_of, table, verdict
from stream2llm.workload.document_orders import (
    ORDERS,
    Lists,
    invalidated,
    laid_out,
    left,
    with_foresight,
)

pytestmark = pytest.mark.unit

SIZES = {"a": 1, "b": 10, "c": 100, "d": 1_000, "e": 10_000}


def a_session(*lists: str) -> Lists:
    return Lists(tuple(map(tuple, lists)), SIZES)


def test_each_order_lays_out_its_way() -> None:
    lists = ["abc", "eca"]
    stand = {name: "".join([*laid_out(lists, order)][-1]) for name, order in ORDERS.items()}
    assert stand == {"as_given": "eca", "stable": "aec", "survivors first": "ace"}


def test_what_stands_behind_the_first_change_is_invalidated() -> None:
    session = a_session("abc", "dab", "dab")
    counts = {name: invalidated(session, order) for name, order in ORDERS.items()}
    assert counts == {"as_given": 111, "stable": 100, "survivors first": 100}
    assert left(session) == 100


def test_foresight_lays_out_anew_before_it_costs_more() -> None:
    """d, put behind c, is lost when c leaves: better to compute c again, behind d."""
    session = a_session("bc", "dbc", "db")
    assert invalidated(session, ORDERS["stable"]) == 1_100
    assert with_foresight(session) == 200


def test_foresight_is_never_worse_and_never_below_what_leaves() -> None:
    for seed, model in enumerate(MODELS.values()):
        drawn = model.redraw(a_session(*["abcde"] * 5), random.Random(seed))
        best = with_foresight(drawn)
        assert left(drawn) <= best
        assert model.reranks or best <= min(invalidated(drawn, each) for each in ORDERS.values())


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_changes_what_it_says(model: UpdateModel) -> None:
    drawn = model.redraw(a_session(*["abcde"] * 4), random.Random(1))
    for old, new in zip(drawn.lists, drawn.lists[1:], strict=False):
        assert len({*new} - {*old}) == model.num_new
        assert len({*old} - {*new}) == (0 if model.grows else model.num_new)
        assert len(new) == len(old) + (model.num_new if model.grows else 0)


def test_the_published_workload_saves_little_and_one_that_inserts_anywhere_much() -> None:
    """Where documents come in near the end, nearly half of what is lost is what leaves."""
    sessions = generated(300, seed=1)
    here = outcome_of(sessions)
    assert here.foresight is not None
    assert 0.5 < here.foresight < here.ratio("stable") < 0.8
    assert here.ratio("left") > 0.4
    assert "MISSED" in verdict(here)
    rng = random.Random(1)
    anywhere = outcome_of([MODELS["anywhere"].redraw(each, rng) for each in sessions])
    assert anywhere.ratio("stable") < 0.5
    assert "; met" in verdict(anywhere)
    assert table("model", {"anywhere": anywhere}).count("|") == 3 * 12
