"""Where the sockets of an engine listen that neither it nor we give an address.

UCX (below NIXL) listens on every interface it finds, gloo and NCCL on the one that
leads to this machine's name, and vLLM takes the address that leads outward. An
engine whose worker is reached at a loopback address needs none of that.
"""

from __future__ import annotations

from stream2llm.api.loopback import is_loopback

# Linux has one loopback device, under this name.
_DEVICE = "lo"


def socket_environment(host: str) -> dict[str, str]:
    """Variables for the processes of an engine whose worker listens on `host`.

    Empty unless that is a loopback address: which interface, and whether RDMA, is
    then for the role's `env` to say.
    """
    if not is_loopback(host):
        return {}
    return {
        # Network devices only: shared memory and the copies between GPUs are other kinds.
        "UCX_NET_DEVICES": _DEVICE,
        "GLOO_SOCKET_IFNAME": _DEVICE,
        "NCCL_SOCKET_IFNAME": _DEVICE,
        "VLLM_HOST_IP": "::1" if ":" in host else "127.0.0.1",
    }
