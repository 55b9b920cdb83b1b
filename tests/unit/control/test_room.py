"""Which nodes have room, on values."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from stream2llm.cluster.room import (
    Demand,
    LabelRule,
    Node,
    refusal_of_all,
    refusal_of_one,
    what_is_missing,
)
from stream2llm.serving.settings.placement import Placement

pytestmark = pytest.mark.unit


def a_node(address: str, gpus: float = 0, free: float | None = None, **labels: str) -> Node:
    total = {"CPU": 8.0, "GPU": gpus}
    return Node(address, labels, total, total if free is None else {**total, "GPU": free})


TWO = (a_node("10.0.0.1", 1, rack="a"), a_node("10.0.0.2", 1, rack="b"))


def a_demand(gpus: float = 0, cpus: float = 1, **labels: str) -> Demand:
    return Demand.of(cpus, gpus, Placement(labels=labels))


@pytest.mark.parametrize(
    ("selector", "racks"),
    [("a", "a"), ("!a", "b-"), ("in(a, b)", "ab"), ("!in(a,b)", "-"), ("c", ""), ("!c", "ab-")],
)
def test_a_selector_takes_what_ray_would_take(selector: str, racks: str) -> None:
    rule = LabelRule.parse("rack", selector)
    found = [r for r in "ab" if rule.holds({"rack": r})] + ["-"] * rule.holds({})
    assert "".join(found) == racks


def test_gpus_of_two_nodes_are_not_added_up_for_one_worker() -> None:
    refusal = refusal_of_one("prefill", a_demand(gpus=2), TWO)
    assert refusal is not None
    assert refusal.field == "prefill.num_gpus"
    assert "needs 1 CPU, 2 GPU on one node" in refusal.text
    assert "10.0.0.1 8 CPU, 1 GPU; 10.0.0.2 8 CPU, 1 GPU" in refusal.text
    assert refusal_of_one("prefill", a_demand(gpus=1), TWO) is None


def test_a_label_that_no_node_has_is_refused_with_field_and_labels() -> None:
    refusal = refusal_of_one("router", a_demand(rack="c"), TWO)
    assert refusal is not None
    assert refusal.field == "router.placement.labels"
    assert "no node has rack=c" in refusal.text
    assert "10.0.0.1 (rack=a); 10.0.0.2 (rack=b)" in refusal.text


def test_only_nodes_with_the_label_count() -> None:
    nodes = (a_node("10.0.0.1", 4, rack="a"), a_node("10.0.0.2", 1, rack="b"))
    assert refusal_of_one("prefill", a_demand(gpus=4, rack="a"), nodes) is None
    refusal = refusal_of_one("prefill", a_demand(gpus=4, rack="b"), nodes)
    assert refusal is not None
    assert "10.0.0.1" not in refusal.text


def test_a_resource_of_ones_own_is_named_by_its_field() -> None:
    demand = Demand.of(0, 0, Placement(resources={"router": 1}))
    refusal = refusal_of_one("router", demand, TWO)
    assert refusal is not None
    assert refusal.field == "router.placement.resources"


def test_all_workers_together_may_be_too_many() -> None:
    demands = [("prefill", a_demand(gpus=1))] * 2 + [("decode", a_demand(gpus=1))]
    assert refusal_of_all(demands[:2], TWO) is None
    refusal = refusal_of_all(demands, TWO)
    assert refusal is not None
    assert "need 3 GPU, Ray has 2; set prefill.num_gpus or decode.num_gpus" in refusal.text


def test_what_is_missing_is_said_of_each_node() -> None:
    nodes = (a_node("10.0.0.1", 1, rack="a"), a_node("10.0.0.2", 1, free=0, rack="b"), a_node("c"))
    text = what_is_missing(a_demand(gpus=1, rack="b"), nodes)
    assert "needs 1 CPU, 1 GPU, rack=b" in text
    assert "10.0.0.1: rack=a;" in text
    assert "10.0.0.2: 0 of 1 GPU free;" in text
    assert "c: no label rack, 0 of 1 GPU free" in text


def test_nothing_is_missing_where_a_node_has_it_all() -> None:
    assert what_is_missing(a_demand(gpus=1, rack="b"), TWO) == ""
    assert "(no nodes)" in what_is_missing(a_demand(), [])


def test_a_hundred_nodes_are_not_all_listed() -> None:
    nodes = [a_node(f"10.0.0.{n}") for n in range(100)]
    text = what_is_missing(a_demand(gpus=1), nodes)
    assert "and 94 more" in text
    assert len(text) < 400


def test_demands_are_the_same_within_what_ray_can_count() -> None:
    assert a_demand(cpus=0.3, rack="a").is_same(a_demand(cpus=0.1 + 0.2, rack="in(a)"))
    assert not a_demand(rack="a").is_same(a_demand(rack="!a"))
    assert not a_demand(gpus=1).is_same(a_demand())


@pytest.mark.parametrize(
    ("placement", "text"),
    [
        ({"labels": {"rack": "a b"}}, "none of VALUE"),
        ({"labels": {"a/b/c": "a"}}, "no key"),
        ({"resources": {"GPU": 1}}, "set num_gpus instead"),
        ({"resources": {"router": 0}}, "neither a fraction"),
        ({"resources": {"router": 1.5}}, "neither a fraction"),
        ({"label": {}}, "Extra inputs"),
    ],
)
def test_a_placement_that_ray_would_refuse_is_refused(placement: object, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Placement.model_validate(placement)
