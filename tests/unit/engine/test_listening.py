"""An engine that listens where it was not configured to is noticed."""

from __future__ import annotations

import os
import socket

import pytest

from stream2llm.engine.listening import Told, device_addresses, listening_sockets, strays, told

DEVICES = {
    "lo": frozenset({"127.0.0.1", "::1"}),
    "eth0": frozenset({"10.77.0.1", "fe80::1"}),
    "eth1": frozenset({"192.0.2.1"}),
}
SMALL = {name: DEVICES[name] for name in ("lo", "eth0")}
ETH0 = Told(frozenset({"eth0"}))


@pytest.mark.parametrize(
    "listener",
    [("10.77.0.1", 4000), ("127.0.0.1", 4000), ("::ffff:10.77.0.1", 1), ("fe80::1%eth0", 1)],
)
def test_a_socket_on_the_device_that_was_named_is_where_it_should_be(
    listener: tuple[str, int],
) -> None:
    assert list(strays([listener], ETH0, DEVICES)) == []


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "::"])
def test_a_socket_that_another_network_reaches_is_named(host: str) -> None:
    found = list(strays([("10.77.0.1", 1), (host, 4000)], ETH0, DEVICES))
    assert found == [f"{host}:4000 is reached on eth1"]


def test_all_interfaces_are_no_more_than_the_only_one() -> None:
    assert list(strays([("0.0.0.0", 4000)], ETH0, SMALL)) == []


def test_a_range_of_ports_that_had_no_effect_is_named() -> None:
    ports = Told(frozenset({"eth0"}), range(30_000, 32_000))
    side_channel, ucx = ("10.77.0.1", 20_001), ("10.77.0.1", 31_999)
    assert list(strays([side_channel, ucx], ports, DEVICES)) == []
    found = list(strays([side_channel, ("10.77.0.1", 32_000)], ports, DEVICES))
    assert found == ["no socket is within UCX_TCP_PORT_RANGE 30000-31999"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ETH0),
        ({"UCX_NET_DEVICES": "eth1,mlx5_0:1"}, Told(frozenset({"eth0", "eth1"}))),
        ({"GLOO_SOCKET_IFNAME": "eth1", "UCX_TCP_PORT_RANGE": "0"}, Told(frozenset({"eth0", "eth1"}))),
        ({"UCX_TCP_PORT_RANGE": "5-7"}, Told(frozenset({"eth0"}), range(5, 8))),
        ({"UCX_NET_DEVICES": "all"}, ETH0),
    ],
)  # fmt: skip
def test_what_an_engine_was_told(environment: dict[str, str], expected: Told) -> None:
    assert told("10.77.0.1", environment, DEVICES) == expected


def test_the_sockets_of_this_process_and_the_devices_are_found() -> None:
    with socket.socket() as server, socket.socket() as idle:
        for each in (server, idle):
            each.bind(("127.0.0.1", 0))
        server.listen()
        found = listening_sockets([os.getpid(), 2**22 + 1])
        assert server.getsockname() in found
        assert idle.getsockname() not in found
    assert "127.0.0.1" in device_addresses()["lo"]
