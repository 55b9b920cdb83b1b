"""Builders of cost profiles for tests: small numbers that can be reckoned in the head."""

from __future__ import annotations

from cost_profiles.types import (
    NOTHING_RAN,
    SCHEMA_VERSION,
    UNITS,
    Accelerator,
    CostProfile,
    Kind,
    ModelGeometry,
    Provenance,
    RecomputePoint,
    RecomputeSection,
    SwapPoint,
    SwapSection,
)

A_MODEL = ModelGeometry("tiny", num_layers=2, num_kv_heads=4, head_size=8, dtype="bfloat16")
A_MEASUREMENT = Provenance(
    kind=Kind.MEASURED,
    when="2026-11-22",
    command="stream2llm profile",
    machine="two cores",
    figures=(),
    note="",
)
# Ten milliseconds for each 100 tokens.
LINEAR = ((100, 0, 0.01), (200, 0, 0.02), (400, 0, 0.04), (800, 0, 0.08))
# A millisecond a block, and one for the copy.
COPIES = ((1, 0.002), (9, 0.01), (99, 0.1))


AN_ABACUS = Accelerator("Abacus 3000", ("abacus",))


def a_recompute(
    points: tuple[tuple[int, int, float], ...] = LINEAR,
    provenance: Provenance = A_MEASUREMENT,
    token_budget: int = 512,
) -> RecomputeSection:
    return RecomputeSection(provenance, token_budget, tuple(RecomputePoint(*p) for p in points))


def a_swap(
    points: tuple[tuple[int, float], ...] = COPIES, provenance: Provenance = A_MEASUREMENT
) -> SwapSection:
    return SwapSection(provenance, tuple(SwapPoint(*p) for p in points))


def a_profile(
    accelerator: Accelerator = AN_ABACUS,
    model: ModelGeometry = A_MODEL,
    tensor_parallel_size: int = 1,
    block_size: int = 16,
    recompute: RecomputeSection | None = None,
    swap_out: SwapSection | None = None,
    swap_in: SwapSection | None = None,
    schema_version: int = SCHEMA_VERSION,
) -> CostProfile:
    return CostProfile(
        schema_version=schema_version,
        units=UNITS,
        accelerator=accelerator,
        model=model,
        tensor_parallel_size=tensor_parallel_size,
        block_size=block_size,
        versions=NOTHING_RAN,
        recompute=recompute or a_recompute(),
        swap_out=swap_out or a_swap(),
        swap_in=swap_in or a_swap(),
    )


class FlatCosts:
    """The same seconds for each token and each block, whatever came before."""

    def __init__(self, per_token_s: float = 0.001, per_block_s: float = 0.01) -> None:
        self.per_token_s = per_token_s
        self.per_block_s = per_block_s

    def recompute_s(self, from_token: int, to_token: int) -> float:
        return (to_token - from_token) * self.per_token_s

    @property
    def step_fixed_s(self) -> float:
        return 0.0

    def swap_out_s(self, num_blocks: int) -> float:
        return num_blocks * self.per_block_s

    def swap_in_s(self, num_blocks: int) -> float:
        return num_blocks * self.per_block_s
