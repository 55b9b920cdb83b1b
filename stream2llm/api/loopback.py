"""Which hosts mean this machine and no other."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be reached from this machine.

    Looks at the text alone: a name but for localhost is never resolved.
    """
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def host_of(address: str) -> str:
    """The host of "host:port", "[v6]:port", a bare host, or a gRPC target such as "dns:///host:port"."""
    rest = address.rpartition("/")[2]
    for scheme in ("ipv4:", "ipv6:", "dns:"):
        rest = rest.removeprefix(scheme)
    if rest.startswith("["):
        return rest[1:].partition("]")[0]
    return rest if rest.count(":") > 1 else rest.partition(":")[0]
