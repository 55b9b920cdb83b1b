"""What is wrong with a configuration, as its writer reads it."""

from __future__ import annotations

from typing import Any

import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster.config_file import parse_config
from stream2llm.cluster.layout import Factories, lay_out
from stream2llm.cluster.supervision import WORKER_ROLES
from stream2llm.serving.settings.worker_options import WorkerOptions
from stream2llm.serving.settings.worker_spec import WorkerSpec


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"prefil": {}}, "unknown key prefil; did you mean prefill?"),
        ({"router": {"prot": 1}}, "unknown key router.prot; did you mean port?"),
        ({"gateway": {"replica": 2}}, "unknown key gateway.replica; did you mean replicas?"),
        ({"zzz": 1}, "unknown key zzz"),
        ([1], "the top level must have keys with values (got [1])"),
        ({"ray": 3}, "ray must have keys with values (got 3)"),
        (
            {"gateway": {"client_key": "/key"}},
            "gateway: client_certificate and client_key are needed together",
        ),
    ],
)
def test_a_problem_is_said_by_its_key(tree: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        parse_config(tree, source="cluster.yaml")
    assert raised.value.message == f"cluster.yaml: {message}"


def test_a_check_of_ours_speaks_for_itself() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        parse_config({"prefill": {"policy": "fifo"}}, source="cluster.yaml")
    start = "cluster.yaml: prefill.policy: no scheduling policy is called 'fifo'; there are "
    assert raised.value.message.startswith(start)


# -- mixed workers -------------------------------------------------------------------


def roles_of(tree: dict[str, Any]) -> list[str]:
    config = parse_config(tree, source="cluster.yaml")
    launches = lay_out(config, None, {}, Factories())
    return [each.name for each in launches if each.role in WORKER_ROLES]


def test_a_file_with_mixed_workers_alone_has_no_others() -> None:
    assert roles_of({"mixed": {"replicas": 2}}) == ["mixed-0", "mixed-1"]
    assert roles_of({}) == ["prefill-0", "decode-0"]
    both = {"prefill": {}, "decode": {}, "mixed": {}}
    assert roles_of(both) == ["prefill-0", "decode-0", "mixed-0"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"prefill": {}, "mixed": {}}, "there is a section prefill, which needs the other one"),
        ({"decode": {}, "mixed": {}}, "there is a section decode, which needs the other one"),
        (
            {"prefill": {"policy": "fcfs"}, "decode": {}, "mixed": {}},
            "mixed.policy and prefill.policy differ",
        ),
        ({"prefill": {"inter_token_target_ms": 5}}, "unknown key prefill.inter_token_target_ms"),
    ],
)
def test_what_mixed_workers_do_not_go_with(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        parse_config(tree, source="cluster.yaml")
    assert message in raised.value.message


def test_the_options_of_mixed_workers_reach_their_scheduler() -> None:
    tree = {"mixed": {"policy": "fcfs", "inter_token_target_ms": 50, "offload_pool_gib": 1}}
    config = parse_config(tree, source="cluster.yaml")
    (launch,) = [each for each in lay_out(config, None, {}, Factories()) if each.role == "mixed"]
    assert isinstance(launch.spec, WorkerSpec)
    options = WorkerOptions.from_additional_config(launch.spec.options.to_additional_config())
    assert options.inter_token_target_ms == 50
    assert (options.prefill.policy, options.prefill.offload_pool_gib) == ("fcfs", 1)
