"""Profiles from datasheet figures, for devices without a measured one.

One engine step computes n tokens behind c others. Its floating point operations
are those of the weights (2 for each weight and token) and of attention (4 for each
layer, query head, head dimension and pair of tokens); it reads all weights and the
context's KV once; with tensor parallelism every layer sums its output over the ranks
twice. The step takes as long as the slower of computing and reading, plus the
sums and a fixed part:

    max(flops / rate, bytes / bandwidth) + sums / link + overhead

Copies take a fixed part and the bytes of the blocks over the link; every rank copies
its share over a separate link. That presumes a copy in large pieces: block by block and
layer by layer it would take several times as long (docs/cost-profiles.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from cost_profiles.datasheets import GPUS, Datasheet, datasheet_for
from cost_profiles.types import (
    DTYPE_BYTES,
    NOTHING_RAN,
    SCHEMA_VERSION,
    UNITS,
    CostProfile,
    Figure,
    Kind,
    ModelGeometry,
    Provenance,
    RecomputePoint,
    RecomputeSection,
    SwapPoint,
    SwapSection,
)

# When the figures were last looked up.
FIGURES_OF = "2026-11-22"
DEFAULT_STEP_TOKENS = 8192

WHOLE_PASS_SHARE = Figure(
    "share of kernel efficiency kept in a whole forward pass",
    0.75,
    "share",
    "judgement: norms, rotary embedding, activations and smaller matrices come between",
)
MEMORY_EFFICIENCY = Figure(
    "memory efficiency", 0.9, "share of peak", "judgement: what large streaming reads reach"
)
PEER_EFFICIENCY = Figure(
    "efficiency of sums over ranks", 0.7, "share of peak", "judgement: all-reduce of some MB"
)
STEP_OVERHEAD = Figure(
    "fixed part of a step", 3e-3, "s", "judgement: scheduling, launches and sampling in vLLM"
)
COPY_OVERHEAD = Figure(
    "fixed part of a copy", 1e-3, "s", "judgement: gathering blocks in every layer, one wait"
)

_NUM_TOKENS = (
    *(256, 512, 1024, 2048, 4096, 8192, 16384, 24576, 32768, 40960, 49152, 57344, 65536),
    *(81920, 98304, 114688, 131072),
)
_NUM_BLOCKS = (1, 8, 32, 128, 512, 2048, 8192)


@dataclass(frozen=True, slots=True)
class TransformerShape:
    """A dense decoder with grouped attention and a gated MLP, like Llama."""

    geometry: ModelGeometry
    hidden_size: int
    intermediate_size: int
    num_query_heads: int

    @property
    def num_weights(self) -> int:
        """Weights that every prompt token uses: no embedding, no output head."""
        query = self.hidden_size * self.num_query_heads * self.geometry.head_size
        key = self.hidden_size * self.geometry.num_kv_heads * self.geometry.head_size
        mlp = self.hidden_size * self.intermediate_size
        return self.geometry.num_layers * (2 * query + 2 * key + 3 * mlp)

    @property
    def attention_flops_per_pair(self) -> int:
        """Scores and weighted sum, for one token and one that it attends to."""
        return 4 * self.geometry.num_layers * self.num_query_heads * self.geometry.head_size


LLAMA_31_8B = TransformerShape(
    geometry=ModelGeometry("Llama-3.1-8B", 32, 8, 128, "bfloat16"),
    hidden_size=4096,
    intermediate_size=14336,
    num_query_heads=32,
)


def modelled_profile(
    sheet: Datasheet,
    shape: TransformerShape,
    tensor_parallel_size: int,
    *,
    block_size: int,
    token_budget: int = DEFAULT_STEP_TOKENS,
    command: str,
) -> CostProfile:
    """Returns the profile that a datasheet's figures give."""
    rates = _rates_of(sheet, shape, tensor_parallel_size)
    seconds_to = rates.seconds_to(_NUM_TOKENS, token_budget)
    recompute = tuple(
        RecomputePoint(num_tokens, 0, _rounded(seconds))
        for num_tokens, seconds in zip(_NUM_TOKENS, seconds_to, strict=True)
    )
    block_bytes = block_size * shape.geometry.kv_bytes_per_token(tensor_parallel_size)
    link = sheet.host_link.value * sheet.host_link_efficiency.value
    swaps = tuple(
        SwapPoint(n, _rounded(COPY_OVERHEAD.value + n * block_bytes / link)) for n in _NUM_BLOCKS
    )
    copied = _provenance(command, _copy_figures(sheet), "Each rank over a link of its own.")
    return CostProfile(
        schema_version=SCHEMA_VERSION,
        units=UNITS,
        accelerator=sheet.accelerator,
        model=shape.geometry,
        tensor_parallel_size=tensor_parallel_size,
        block_size=block_size,
        versions=NOTHING_RAN,
        recompute=RecomputeSection(
            _provenance(command, _step_figures(sheet, tensor_parallel_size), ""),
            token_budget,
            recompute,
        ),
        swap_out=SwapSection(copied, swaps),
        swap_in=SwapSection(copied, swaps),
    )


def fallback_profile(
    device_name: str,
    shape: TransformerShape,
    tensor_parallel_size: int,
    *,
    block_size: int,
    num_cpu_cores: int,
    token_budget: int = DEFAULT_STEP_TOKENS,
) -> CostProfile:
    """Returns a profile from the datasheet of a known device, else from a guess."""
    sheet = datasheet_for(device_name, num_cpu_cores)
    return modelled_profile(
        sheet,
        shape,
        tensor_parallel_size,
        block_size=block_size,
        token_budget=token_budget,
        command="fallback at start-up",
    )


def is_known(device_name: str) -> bool:
    """Returns whether a device has a datasheet of its own here."""
    return any(sheet.accelerator.is_called(device_name) for sheet in GPUS)


@dataclass(frozen=True, slots=True)
class _Rates:
    """Seconds of each kind of work, on all ranks together."""

    per_token_s: float
    per_pair_s: float
    # Reading all weights, and the KV of one context token.
    weights_s: float
    per_context_token_s: float
    # Summing one token's activations over the ranks.
    per_token_sums_s: float

    def step_s(self, num_tokens: int, num_context_tokens: int) -> float:
        num_pairs = num_tokens * (num_context_tokens + (num_tokens + 1) / 2)
        compute_s = num_tokens * self.per_token_s + num_pairs * self.per_pair_s
        read_s = self.weights_s + num_context_tokens * self.per_context_token_s
        return max(compute_s, read_s) + num_tokens * self.per_token_sums_s + STEP_OVERHEAD.value

    def seconds_to(self, sizes: Sequence[int], token_budget: int) -> list[float]:
        """Returns for each size the seconds of a run from nothing, in steps of the budget."""
        return [self._run_s(size, token_budget) for size in sizes]

    def _run_s(self, num_tokens: int, token_budget: int) -> float:
        starts = (index * token_budget for index in range(ceil(num_tokens / token_budget)))
        return sum(self.step_s(min(token_budget, num_tokens - start), start) for start in starts)


def _rates_of(sheet: Datasheet, shape: TransformerShape, num_ranks: int) -> _Rates:
    flops = sheet.peak_flops.value * WHOLE_PASS_SHARE.value * num_ranks
    matmul, attention = sheet.matmul_efficiency.value, sheet.attention_efficiency.value
    memory = sheet.memory.value * MEMORY_EFFICIENCY.value
    weight_bytes = shape.num_weights * DTYPE_BYTES[shape.geometry.dtype] / num_ranks
    return _Rates(
        per_token_s=2 * shape.num_weights / (flops * matmul),
        per_pair_s=shape.attention_flops_per_pair / (flops * attention),
        weights_s=weight_bytes / memory,
        per_context_token_s=shape.geometry.kv_bytes_per_token(num_ranks) / memory,
        per_token_sums_s=_sums_s(sheet, shape, num_ranks),
    )


def _sums_s(sheet: Datasheet, shape: TransformerShape, num_ranks: int) -> float:
    """A ring all-reduce sends 2 (p - 1) / p of the data each way; a layer has two of them."""
    if num_ranks == 1:
        return 0.0
    activations = shape.hidden_size * DTYPE_BYTES[shape.geometry.dtype]
    sent = prod((2, shape.geometry.num_layers, activations, 2 * (num_ranks - 1) / num_ranks))
    return sent / (sheet.peer_link.value * PEER_EFFICIENCY.value)


def _step_figures(sheet: Datasheet, num_ranks: int) -> tuple[Figure, ...]:
    peers = () if num_ranks == 1 else (sheet.peer_link, PEER_EFFICIENCY)
    return (
        *(sheet.peak_flops, sheet.matmul_efficiency, sheet.attention_efficiency),
        *(WHOLE_PASS_SHARE, sheet.memory, MEMORY_EFFICIENCY, *peers, STEP_OVERHEAD),
    )


def _copy_figures(sheet: Datasheet) -> tuple[Figure, ...]:
    return (sheet.host_link, sheet.host_link_efficiency, COPY_OVERHEAD)


def _provenance(command: str, figures: tuple[Figure, ...], note: str) -> Provenance:
    return Provenance(Kind.MODELLED, FIGURES_OF, command, None, figures, note)


def _rounded(seconds: float) -> float:
    """Rounds to six digits: more would be false precision, and differ between machines."""
    return float(f"{seconds:.6g}")
