"""Restricts an engine's internal sockets to loopback where its worker is.

UCX (below NIXL) listens on every interface it finds, gloo and NCCL on the one of this
machine's name, and vLLM takes the address of the outward route. An engine whose worker
has a loopback address needs none of that. (The actor gives vLLM any other address.)
"""

from __future__ import annotations

from stream2llm.api.loopback import is_loopback

# The name of Linux's only loopback device.
_DEVICE = "lo"


def socket_environment(host: str) -> dict[str, str]:
    """Returns variables for the processes of an engine whose worker listens on `host`.

    Empty unless `host` is a loopback address: otherwise the role's `env` chooses the
    interface, and whether to use RDMA.
    """
    if not is_loopback(host):
        return {}
    return {
        # Network devices only: shared memory and copies between GPUs are other kinds.
        "UCX_NET_DEVICES": _DEVICE,
        "GLOO_SOCKET_IFNAME": _DEVICE,
        "NCCL_SOCKET_IFNAME": _DEVICE,
        "VLLM_HOST_IP": "::1" if ":" in host else "127.0.0.1",
    }
