"""Which addresses mean this machine, and what follows for engines and channels."""

from __future__ import annotations

import pytest

from stream2llm.api.grpc_options import channel_options, client_channel_options
from stream2llm.api.loopback import host_of, is_loopback
from stream2llm.engine.sockets import socket_environment

LOOPBACK = ["127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST.", "a.localhost", "::1", "[::1]",
            "::ffff:127.0.0.1"]  # fmt: skip
OUTSIDE = ["0.0.0.0", "::", "10.0.0.1", "192.0.2.2", "::ffff:10.0.0.1", "fe80::1%eth0", "",
           "auto", "localhost.example.org", "127.0.0.1.example.org"]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK)
def test_a_loopback_host_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", OUTSIDE)
def test_any_other_host_is_not_taken_for_one(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1:50051", "127.0.0.1"),
        ("router.example.org:50051", "router.example.org"),
        ("localhost", "localhost"),
        ("[::1]:50051", "::1"),
        ("::1", "::1"),
        ("dns:///localhost:50051", "localhost"),
        ("dns:localhost:50051", "localhost"),
        ("ipv4:127.0.0.1:50051", "127.0.0.1"),
        ("ipv6:[::1]:50051", "::1"),
    ],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


def test_an_engine_on_loopback_keeps_all_its_sockets_there() -> None:
    assert socket_environment("127.0.0.1") == {
        "UCX_NET_DEVICES": "lo",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "VLLM_HOST_IP": "127.0.0.1",
    }
    assert socket_environment("::1")["VLLM_HOST_IP"] == "::1"


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0"])
def test_an_engine_that_others_reach_keeps_its_interfaces(host: str) -> None:
    assert socket_environment(host) == {}


def test_a_client_may_need_a_proxy_but_never_to_this_machine() -> None:
    direct = ("grpc.enable_http_proxy", 0)
    assert direct in channel_options(1024)
    assert direct in client_channel_options("localhost:1", 1024)
    assert direct not in client_channel_options("router.example.org:1", 1024)
