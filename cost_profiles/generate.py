"""Writes the modelled profiles of data/: `python -m cost_profiles.generate`.

Leaves measured files alone, which only the measuring command writes.
"""

from __future__ import annotations

from pathlib import Path

from cost_profiles.datasheets import A40, A100_80G, H100_SXM, H200, L4, Datasheet
from cost_profiles.load import dump_profile, save_profile
from cost_profiles.roofline import LLAMA_31_8B, modelled_profile
from cost_profiles.types import CostProfile

COMMAND = "python -m cost_profiles.generate"
DATA = Path(__file__).parent / "data"
# vLLM's default on CUDA.
BLOCK_SIZE = 16

SHIPPED: dict[str, Datasheet] = {
    "h100-sxm-80g": H100_SXM,
    "h200": H200,
    "a100-80g": A100_80G,
    "a40": A40,
    "l4": L4,
}


def modelled_profiles() -> dict[str, CostProfile]:
    """Returns every generated profile by its file name."""
    return {
        f"{device}_{LLAMA_31_8B.geometry.name.lower()}_tp{num_ranks}.json": modelled_profile(
            sheet, LLAMA_31_8B, num_ranks, block_size=BLOCK_SIZE, command=COMMAND
        )
        for device, sheet in SHIPPED.items()
        for num_ranks in (1, 2)
    }


def main() -> None:
    """Writes all generated profiles."""
    DATA.mkdir(exist_ok=True)
    for name, profile in modelled_profiles().items():
        save_profile(profile, DATA / name)
        print(f"{name}: {len(dump_profile(profile))} bytes")


if __name__ == "__main__":
    main()
