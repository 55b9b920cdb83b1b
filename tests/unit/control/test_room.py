"""Which nodes have room, and whether a Ray can hold the configured cluster; on values."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster.config_file import parse_config
from stream2llm.cluster.layout import Factories, lay_out
from stream2llm.cluster.ray_checks import check_ray, demands_of
from stream2llm.cluster.room import (
    Demand,
    LabelRule,
    Node,
    refusal_of_all,
    refusal_of_one,
    what_is_missing,
)
from stream2llm.serving.settings.placement import Placement
from tests.refusals import refused


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
    assert refusal.field == "prefill.num_gpus"
    assert "needs 1 CPU, 2 GPU on one node" in refusal.text
    assert "10.0.0.1 8 CPU, 1 GPU; 10.0.0.2 8 CPU, 1 GPU" in refusal.text
    assert refusal_of_one("prefill", a_demand(gpus=1), TWO) is None


def test_a_label_that_no_node_has_is_refused_with_field_and_labels() -> None:
    refusal = refusal_of_one("router", a_demand(rack="c"), TWO)
    assert refusal.field == "router.placement.labels"
    assert "no node has rack=c" in refusal.text
    assert "10.0.0.1 (rack=a); 10.0.0.2 (rack=b)" in refusal.text


def test_only_nodes_with_the_label_count() -> None:
    nodes = (a_node("10.0.0.1", 4, rack="a"), a_node("10.0.0.2", 1, rack="b"))
    assert refusal_of_one("prefill", a_demand(gpus=4, rack="a"), nodes) is None
    refusal = refusal_of_one("prefill", a_demand(gpus=4, rack="b"), nodes)
    assert "10.0.0.1" not in refusal.text


def test_a_resource_of_ones_own_is_named_by_its_field() -> None:
    demand = Demand.of(0, 0, Placement(resources={"router": 1}))
    assert refusal_of_one("router", demand, TWO).field == "router.placement.resources"


def test_all_workers_together_may_be_too_many() -> None:
    demands = [("prefill", a_demand(gpus=1))] * 2 + [("decode", a_demand(gpus=1))]
    assert refusal_of_all(demands[:2], TWO) is None
    refusal = refusal_of_all(demands, TWO)
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


AUTO = {"router": {"host": "auto"}, "prefill": {"host": "auto"}, "decode": {"host": "auto"},
        "controller": {"host": "auto"}}  # fmt: skip


def nodes(*gpus: float, **labels: str) -> tuple[Node, ...]:
    """One node for each number of GPUs, the first one with the labels."""
    found = []
    for index, count in enumerate(gpus):
        total = {"CPU": 8.0, "GPU": count}
        found.append(Node(f"10.0.0.{index + 1}", {} if index else labels, total, total))
    return tuple(found)


def checked(present: tuple[Node, ...], **parts: dict[str, Any]) -> None:
    """Checks a cluster on several nodes' hosts, with these keys more or changed."""
    tree = {name: {**AUTO.get(name, {}), **parts.get(name, {})} for name in AUTO | parts}
    check_ray(parse_config(tree, source="test"), present)


def test_a_worker_of_two_gpus_needs_a_node_with_two() -> None:
    part = {"num_gpus": 2}
    with refused(r"2 GPU on one node", field="prefill.num_gpus"):
        checked(nodes(1, 1), prefill=part)
    checked(nodes(1, 2), prefill=part)


def test_gpus_for_all_workers_are_counted_over_all_nodes() -> None:
    part = {"num_gpus": 1}
    checked(nodes(1, 1), prefill=part, decode=part)
    with pytest.raises(InvalidRequestError, match=r"need 3 GPU, Ray has 2"):
        checked(nodes(1, 1), prefill=part, decode={**part, "replicas": 2})


@pytest.mark.parametrize("part", ["router", "prefill", "decode", "controller"])
def test_a_label_that_no_node_has_is_refused_for_every_part(part: str) -> None:
    there, elsewhere = ({"placement": {"labels": {"rack": value}}} for value in "ab")
    checked(nodes(0, 0, rack="a"), **{part: there})
    with refused(r"rack=b; there are 10.0.0.1 \(rack=a\)", field=f"{part}.placement.labels"):
        checked(nodes(0, 0, rack="a"), **{part: elsewhere})


def test_with_an_autoscaler_nodes_may_still_come(caplog: pytest.LogCaptureFixture) -> None:
    checked(nodes(0), prefill={"num_gpus": 8}, ray={"autoscales": True})
    assert "prefill.num_gpus" in caplog.text


@pytest.mark.parametrize("part", ["router", "prefill", "decode"])
def test_on_several_nodes_loopback_is_refused_by_field(part: str) -> None:
    checked(nodes(0), **{part: {"host": "127.0.0.1"}})
    with pytest.raises(InvalidRequestError, match=f"set {part}.host to auto"):
        checked(nodes(0, 0), **{part: {"host": "localhost"}})


def test_a_controller_on_loopback_is_named_on_several_nodes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    checked(nodes(0), controller={"host": "127.0.0.1"})
    checked(nodes(0, 0))
    assert not caplog.records
    checked(nodes(0, 0), controller={"host": "127.0.0.1"})
    assert "controller.host" in caplog.text


def test_what_is_judged_is_what_ray_will_be_asked_for(tmp_path: Path) -> None:
    """The demands of the configuration and of the actors that are laid out."""
    (tmp_path / "config.json").write_text("{}")
    place = {"labels": {"rack": "in(a, b)"}, "resources": {"slot": 1}}
    tree = {"router": {"replicas": 2, "placement": place}, "prefill": {"num_cpus": 3}}
    config = parse_config(tree, source="test")
    launches = lay_out(config, tmp_path, {}, Factories())
    laid_out = [(each.role, Demand.of_launch(each)) for each in launches]
    controller, *rest = demands_of(config)
    assert rest == laid_out
    assert controller == ("controller", Demand({}))
