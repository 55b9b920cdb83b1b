"""The address of this node, for hosts that are configured as "auto"."""

from __future__ import annotations

import ray
from ray._common.network_utils import is_localhost, node_ip_address_from_perspective


def node_address() -> str:
    """Returns the address at which others reach this node. Call it in a Ray process.

    A Ray cluster that we started knows its node only by the loopback address; in that case
    this is the address of the interface with the outward route.
    """
    address: str = ray.util.get_node_ip_address()
    return outward_address() if is_localhost(address) else address


def outward_address() -> str:
    """Returns the address of this machine's interface with the outward route; needs no Ray."""
    return str(node_ip_address_from_perspective(None))
