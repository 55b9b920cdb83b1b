"""Configures a prefill worker's KV connectors: NIXL for the hand-over, ours for swapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ROLE = "kv_producer"
# For engines without a hand-over: mixed workers, benchmarks, profiling, tests.
SWAP_ONLY: dict[str, Any] = {
    "kv_connector": "SwapConnector",
    "kv_connector_module_path": "prefill_worker.swap_connector",
    "kv_role": _ROLE,
}


def kv_transfer(nixl_options: Mapping[str, Any], *, swaps: bool) -> dict[str, Any]:
    """Returns vLLM's `kv_transfer_config`.

    `nixl_options` are further options of NIXL. Under a MultiConnector each child has
    its own configuration, but the scheduler reads that of the parent.
    """
    nixl = {
        # The name is vLLM's, which treats it specially; the class is ours.
        "kv_connector": "NixlConnector",
        "kv_connector_module_path": "prefill_worker.nixl_connector",
        "kv_role": _ROLE,
        **nixl_options,
    }
    if not swaps:
        return nixl
    parent = {key: value for key, value in nixl.items() if key != "kv_connector_module_path"}
    return {
        **parent,
        "kv_connector": "MultiConnector",
        # NIXL first: vLLM uses the first child's layout, transfer parameters and handshake.
        "kv_connector_extra_config": {"connectors": [nixl, SWAP_ONLY]},
    }
