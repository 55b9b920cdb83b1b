"""The address of this node, for hosts that are configured as "auto"."""

from __future__ import annotations

import ray
from ray._common.network_utils import is_localhost, node_ip_address_from_perspective


def node_address() -> str:
    """Where others reach this node. Call it in a process of a Ray cluster.

    A Ray of our own knows its node by the loopback address alone; then this is the address of the
    interface that leads outward.
    """
    address: str = ray.util.get_node_ip_address()
    return str(node_ip_address_from_perspective(None)) if is_localhost(address) else address
