"""The parts of a cost profile, and the interface of a cost model.

Values only, with the limits of each; `load` reads files, `check` has conditions between
values. Seconds are those of the whole engine: with tensor parallelism all ranks work at
the same time, so a profile has the times of the slowest one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal, Protocol

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from stream2llm.api.file_values import file_value

# Version 2 names the token budget `token_budget`.
SCHEMA_VERSION: Final = 2
_Text = Annotated[str, Field(pattern=r"\S")]

DType = Literal["bfloat16", "float16", "float32", "fp8"]
DTYPE_BYTES: dict[DType, int] = {"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1}


class Kind(StrEnum):
    """The source of a section's numbers."""

    # Through the engine and the swap path that use them.
    MEASURED = "measured"
    # On the device, but not through the engine.
    MICROBENCHMARK = "microbenchmark"
    # Computed from published figures.
    MODELLED = "modelled"


@file_value
class Figure:
    """An input of a model."""

    name: str
    value: float
    unit: str
    # Who published it and where; "judgement: ..." where none was published.
    source: _Text


@file_value
class Provenance:
    """The origin of a section."""

    kind: Kind
    # An ISO date.
    when: str
    # The command that made it.
    command: _Text
    # The machine of a measurement; None for a modelled section.
    machine: str | None
    # All inputs of a modelled section; otherwise empty.
    figures: tuple[Figure, ...]
    note: str


@file_value
class Accelerator:
    """A device, by every name that it reports."""

    name: _Text
    aliases: tuple[str, ...]

    def is_called(self, device_name: str) -> bool:
        """Returns whether a device that reports this name is this one.

        Compares whole names, apart from case, blanks and dashes: "L4" is not "L40".
        """
        wanted = plain_name(device_name)
        return any(plain_name(name) == wanted for name in (self.name, *self.aliases))


def plain_name(device_name: str) -> str:
    """Returns a device name without what differs between drivers."""
    return " ".join(device_name.replace("-", " ").casefold().split())


@file_value
class ModelGeometry:
    """The figures that determine the bytes of a model's KV cache. `dtype` is that of weights and KV."""

    name: str
    num_layers: PositiveInt
    num_kv_heads: PositiveInt
    head_size: PositiveInt
    dtype: DType

    def has_kv_like(self, other: ModelGeometry) -> bool:
        """Returns whether KV blocks of both models have the same size and shape, as those of fine-tunes do."""
        return self._shape == other._shape

    @property
    def _shape(self) -> tuple[int, int, int, str]:
        return (self.num_layers, self.num_kv_heads, self.head_size, self.dtype)

    def kv_bytes_per_token(self, tensor_parallel_size: int) -> int:
        """Returns the bytes on one rank. With more ranks than heads, ranks hold copies of heads."""
        heads_per_rank = max(1, self.num_kv_heads // tensor_parallel_size)
        return 2 * self.num_layers * heads_per_rank * self.head_size * DTYPE_BYTES[self.dtype]


@file_value
class Versions:
    """Versions of the software involved; None for what was not involved."""

    stream2llm: str | None
    vllm: str | None
    torch: str | None


@file_value
class Units:
    """Units, written into every file to make it self-explanatory."""

    time: Literal["s"]
    recompute: Literal["tokens"]
    swap: Literal["blocks"]


NOTHING_RAN = Versions(stream2llm=None, vllm=None, torch=None)
UNITS = Units(time="s", recompute="tokens", swap="blocks")


@file_value
class RecomputePoint:
    """The time to compute a number of tokens behind a context.

    The context is empty or ends where an earlier point of the section ends, which covers
    both runs from nothing and the steps of one chunked run.
    """

    num_tokens: PositiveInt
    num_context_tokens: NonNegativeInt
    seconds: PositiveFloat

    @property
    def end(self) -> int:
        """Number of tokens that are computed afterwards."""
        return self.num_context_tokens + self.num_tokens


@file_value
class SwapPoint:
    """The time to copy a number of blocks one way."""

    num_blocks: PositiveInt
    seconds: PositiveFloat


@file_value
class RecomputeSection:
    """Prefill times by growing `end`; each point reaches further, and later, than the last."""

    provenance: Provenance
    # Token budget of the engine steps behind the points.
    token_budget: PositiveInt
    points: tuple[RecomputePoint, ...]


@file_value
class SwapSection:
    """Times of copies one way, by growing number of blocks."""

    provenance: Provenance
    points: tuple[SwapPoint, ...]


@file_value
class CostProfile:
    """The costs of one model on one accelerator."""

    schema_version: Literal[2]
    units: Units
    accelerator: Accelerator
    model: ModelGeometry
    tensor_parallel_size: PositiveInt
    # Tokens per KV block.
    block_size: PositiveInt
    versions: Versions
    recompute: RecomputeSection
    # Accelerator to host.
    swap_out: SwapSection
    # Host to accelerator.
    swap_in: SwapSection

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes on one rank."""
        return self.model.kv_bytes_per_token(self.tensor_parallel_size)


class Costs(Protocol):
    """The costs that a scheduler asks for, in seconds."""

    def recompute_s(self, from_token: int, to_token: int) -> float:
        """Returns the seconds to compute tokens [from, to) behind [0, from)."""

    @property
    def step_fixed_s(self) -> float:
        """Seconds of a step that do not depend on what it computes."""

    def swap_out_s(self, num_blocks: int) -> float:
        """Returns the seconds to copy KV blocks to the host."""

    def swap_in_s(self, num_blocks: int) -> float:
        """Returns the seconds to copy KV blocks back."""
