"""The parts of a cost profile, and the interface of a cost model.

Values only, with the limits of each; `load` reads files, `check` has conditions between
values. Seconds are those of the whole engine: with tensor parallelism all ranks work at
the same time, so a profile has the times of the slowest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Literal, Protocol

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

# Version 2 names the token budget `token_budget`.
SCHEMA_VERSION: Final = 2
# A string is not a number, and an unknown key is a typing error. Values made in Python are
# checked again before they are written.
_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, revalidate_instances="always"
)
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


@dataclass(frozen=True, slots=True)
class Figure:
    """An input of a model."""

    name: str
    value: float
    unit: str
    # Who published it and where; "judgement: ..." where none was published.
    source: _Text

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
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

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device, by every name that it reports."""

    name: _Text
    aliases: tuple[str, ...]

    __pydantic_config__ = _STRICT

    def is_called(self, device_name: str) -> bool:
        """Returns whether a device that reports this name is this one.

        Compares whole names, apart from case, blanks and dashes: "L4" is not "L40".
        """
        wanted = plain_name(device_name)
        return any(plain_name(name) == wanted for name in (self.name, *self.aliases))


def plain_name(device_name: str) -> str:
    """Returns a device name without what differs between drivers."""
    return " ".join(device_name.replace("-", " ").casefold().split())


@dataclass(frozen=True, slots=True)
class ModelGeometry:
    """The figures that determine the bytes of a model's KV cache. `dtype` is that of weights and KV."""

    name: str
    num_layers: PositiveInt
    num_kv_heads: PositiveInt
    head_size: PositiveInt
    dtype: DType

    __pydantic_config__ = _STRICT

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


@dataclass(frozen=True, slots=True)
class Versions:
    """Versions of the software involved; None for what was not involved."""

    stream2llm: str | None
    vllm: str | None
    torch: str | None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class Units:
    """Units, written into every file to make it self-explanatory."""

    time: Literal["s"]
    recompute: Literal["tokens"]
    swap: Literal["blocks"]

    __pydantic_config__ = _STRICT


NOTHING_RAN = Versions(stream2llm=None, vllm=None, torch=None)
UNITS = Units(time="s", recompute="tokens", swap="blocks")


@dataclass(frozen=True, slots=True)
class RecomputePoint:
    """The time to compute a number of tokens behind a context.

    The context is empty or ends where an earlier point of the section ends, which covers
    both runs from nothing and the steps of one chunked run.
    """

    num_tokens: PositiveInt
    num_context_tokens: NonNegativeInt
    seconds: PositiveFloat

    __pydantic_config__ = _STRICT

    @property
    def end(self) -> int:
        """Number of tokens that are computed afterwards."""
        return self.num_context_tokens + self.num_tokens


@dataclass(frozen=True, slots=True)
class SwapPoint:
    """The time to copy a number of blocks one way."""

    num_blocks: PositiveInt
    seconds: PositiveFloat

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class RecomputeSection:
    """Prefill times by growing `end`; each point reaches further, and later, than the last."""

    provenance: Provenance
    # Token budget of the engine steps behind the points.
    token_budget: PositiveInt
    points: tuple[RecomputePoint, ...]

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class SwapSection:
    """Times of copies one way, by growing number of blocks."""

    provenance: Provenance
    points: tuple[SwapPoint, ...]

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
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

    __pydantic_config__ = _STRICT

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes on one rank."""
        return self.model.kv_bytes_per_token(self.tensor_parallel_size)

    @property
    def kv_bytes_per_block(self) -> int:
        """Bytes on one rank."""
        return self.block_size * self.kv_bytes_per_token


class Costs(Protocol):
    """The costs that a scheduler asks for, in seconds."""

    def recompute_s(self, from_token: int, to_token: int) -> float:
        """Returns the seconds to compute tokens [from, to) behind [0, from)."""

    def swap_out_s(self, num_blocks: int) -> float:
        """Returns the seconds to copy KV blocks to the host."""

    def swap_in_s(self, num_blocks: int) -> float:
        """Returns the seconds to copy KV blocks back."""
