"""What is wrong with a configuration, as its writer reads it."""

from __future__ import annotations

from typing import Any

import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.cluster.config_file import parse_config


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
