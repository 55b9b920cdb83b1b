"""Which KV connectors a prefill worker's engine has: NIXL for the hand-over, ours for swapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ROLE = "kv_producer"
# For engines that hand nothing over: benchmarks, profiling, tests.
SWAP_ONLY: dict[str, Any] = {
    "kv_connector": "SwapConnector",
    "kv_connector_module_path": "prefill_worker.swap_connector",
    "kv_role": _ROLE,
}


def kv_transfer(nixl_options: Mapping[str, Any], *, swaps: bool) -> dict[str, Any]:
    """vLLM's `kv_transfer_config`.

    `nixl_options` is what NIXL is told beside its role; under a MultiConnector
    each child has a configuration of its own, and what the scheduler asks is
    read from the parent's.
    """
    nixl = {"kv_connector": "NixlConnector", "kv_role": _ROLE, **nixl_options}
    if not swaps:
        return nixl
    return {
        **nixl,
        "kv_connector": "MultiConnector",
        # NIXL first: its layout, transfer parameters and handshake are those that count.
        "kv_connector_extra_config": {"connectors": [nixl, SWAP_ONLY]},
    }
