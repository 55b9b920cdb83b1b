"""What an address of a cluster looks like, so that a typo is not taken for an outage."""

from __future__ import annotations

from collections.abc import Sequence

from stream2llm.api import arguments

_HIGHEST_PORT = 2**16 - 1
_MOST_DIGITS = len(str(_HIGHEST_PORT))
_WANTED = '"host:port", with an IPv6 address in brackets'
# gRPC's names of resolvers; what follows is theirs.
_RESOLVERS = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")


def router_target(address: str, field: str = "address") -> str:
    """Returns "host:port", or a target that begins with a resolver's name, as gRPC takes it.

    Raises InvalidRequestError for what gRPC would make something else of: a URL, a host alone
    (port 443), a port above 65535 (modulo 2^16).
    """
    if not is_resolved(arguments.text(address, field)):
        return host_and_port(address, field)
    port = address.rpartition(":")[2]
    if port.isdecimal() and not _is_port(port):
        raise arguments.refused(field, address, f"a target with a port up to {_HIGHEST_PORT}")
    return address


def is_resolved(address: str) -> bool:
    """Whether the address begins with the name of one of gRPC's resolvers."""
    return address.startswith(_RESOLVERS)


def router_targets(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the target of one address, or those of a list of at least one."""
    if isinstance(addresses, str):
        return (router_target(addresses),)
    items = arguments.many(addresses, "address", "an address or a list of addresses")
    if not items:
        raise arguments.refused("address", addresses, "an address or a list of addresses")
    names = ["address"] if len(items) == 1 else [f"address[{n}]" for n in range(len(items))]
    return tuple(map(router_target, items, names))


def _is_port(port: str) -> bool:
    """Whether it is a number that a port can have; `int` refuses to read thousands of digits."""
    if not (port.isascii() and port.isdecimal()):
        return False
    digits = port.lstrip("0") or "0"
    return len(digits) <= _MOST_DIGITS and int(digits) <= _HIGHEST_PORT


def host_and_port(address: str, field: str) -> str:
    """Returns it; raises InvalidRequestError for a URL, a host alone and a port that is none."""
    host, _, port = arguments.text(address, field).rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    is_host = bool(host) and all(each.isprintable() and each not in " /" for each in host)
    if not is_host or not _is_port(port) or (":" in host and not is_bracketed):
        raise arguments.refused(field, address, _WANTED)
    return address
