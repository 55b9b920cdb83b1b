"""Whether a Ray can hold the configured cluster, on values."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster.config_file import parse_config
from stream2llm.cluster.layout import Factories, lay_out
from stream2llm.cluster.ray_checks import check_ray, demands_of
from stream2llm.cluster.room import Demand, Node
from tests.refusals import refused

pytestmark = pytest.mark.unit

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


def test_with_an_autoscaler_nodes_may_still_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
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
