"""Compares where an engine listens with where it was configured to.

Nothing protects KV on its way but the network it takes, and who chooses the sockets for it is
UCX, by variables that a typing error leaves without effect. `strays` is pure.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from stream2llm.api.loopback import is_loopback

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
# Name network devices, comma-separated.
_DEVICE_VARIABLES = ("UCX_NET_DEVICES", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_PORT_VARIABLE = "UCX_TCP_PORT_RANGE"

# Host and port.
Listener = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Told:
    """Where an engine may listen."""

    # Network devices; loopback is always allowed.
    devices: frozenset[str]
    # At least one socket has to be there; None: no range was given.
    ports: range | None = None


def listening_sockets(pids: Iterable[int]) -> list[Listener]:
    """Returns where processes listen over TCP; those that have ended are left out."""
    found: set[Listener] = set()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            sockets = psutil.Process(pid).net_connections("tcp")
            found |= {
                (each.laddr.ip, each.laddr.port)
                for each in sockets
                if each.status == psutil.CONN_LISTEN
            }
    return sorted(found)


def device_addresses() -> dict[str, frozenset[str]]:
    """Returns the addresses of each network device of this machine, without scopes."""
    return {
        name: frozenset(_plain(each.address) for each in addresses if each.family in _FAMILIES)
        for name, addresses in psutil.net_if_addrs().items()
    }


def told(host: str, environment: Mapping[str, str], devices: Mapping[str, Collection[str]]) -> Told:
    """Returns where the engine of a worker that others reach at `host` may listen.

    That is the device with this address, and those that UCX's, gloo's and NCCL's variables name.
    """
    named = {
        name.strip()
        for variable in _DEVICE_VARIABLES
        for name in environment.get(variable, "").split(",")
    }
    own = {name for name, addresses in devices.items() if _plain(host) in addresses}
    return Told(frozenset(own | named & devices.keys()), _ports(environment))


def _ports(environment: Mapping[str, str]) -> range | None:
    first, dash, last = environment.get(_PORT_VARIABLE, "").partition("-")
    if not dash or not (first.isdecimal() and last.isdecimal()):  # "0", the default: any
        return None
    return range(int(first), int(last) + 1)


def strays(
    listeners: Collection[Listener], told: Told, devices: Mapping[str, Collection[str]]
) -> Iterator[str]:
    """Yields each way in which an engine listens elsewhere than it was configured to."""
    for host, port in listeners:
        reached = _reached_on(host, devices) - told.devices
        if reached:
            yield f"{host}:{port} is reached on {', '.join(sorted(reached))}"
    if told.ports is not None and not any(port in told.ports for _, port in listeners):
        yield f"no socket is within {_PORT_VARIABLE} {told.ports[0]}-{told.ports[-1]}"


def _reached_on(host: str, devices: Mapping[str, Collection[str]]) -> set[str]:
    """The devices, but for loopback, on which a socket is reached."""
    address = _plain(host)
    if is_loopback(address):
        return set()
    is_any = ipaddress.ip_address(address).is_unspecified
    return {
        name
        for name, addresses in devices.items()
        if (is_any or address in addresses) and not all(map(is_loopback, addresses))
    }


def _plain(address: str) -> str:
    """An address without its scope, and an IPv4 address as such."""
    plain = address.partition("%")[0]
    with suppress(ValueError):
        mapped = getattr(ipaddress.ip_address(plain), "ipv4_mapped", None)
        return str(mapped or plain)
    return plain
