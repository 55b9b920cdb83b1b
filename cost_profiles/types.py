"""What a cost profile is made of, and what a cost model answers.

Values only, with the limits of each; how files are read is `load`'s matter, what
must hold between values `check`'s. Seconds are of the whole engine: with tensor parallelism all
ranks work at the same time, so a profile says what the slowest of them takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Literal, Protocol

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

SCHEMA_VERSION: Final = 1
# A string is no number, and a key without a reader is a typing error. Values that were made
# here are checked again before they are written.
_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, revalidate_instances="always"
)
_Text = Annotated[str, Field(pattern=r"\S")]

DType = Literal["bfloat16", "float16", "float32", "fp8"]
DTYPE_BYTES: dict[DType, int] = {"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1}


class Kind(StrEnum):
    """Where the numbers of a section come from."""

    # Through the engine and the swap path that use them.
    MEASURED = "measured"
    # On the device, but not through the engine.
    MICROBENCHMARK = "microbenchmark"
    # Computed from figures that others published.
    MODELLED = "modelled"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that a model was fed with."""

    name: str
    value: float
    unit: str
    # Who published it and where; "judgement: ..." when nobody did.
    source: _Text

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a section came about."""

    kind: Kind
    # An ISO date.
    when: str
    # What was run to make it.
    command: _Text
    # Measured or microbenchmarked: where. Modelled: None.
    machine: str | None
    # Modelled: everything that went in. Otherwise empty.
    figures: tuple[Figure, ...]
    note: str

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device, by every name it reports."""

    name: _Text
    aliases: tuple[str, ...]

    __pydantic_config__ = _STRICT

    def is_called(self, device_name: str) -> bool:
        """Whether a device that reports this name is meant.

        Whole names, apart from case, blanks and dashes: "L4" is no "L40".
        """
        wanted = plain_name(device_name)
        return any(plain_name(name) == wanted for name in (self.name, *self.aliases))


def plain_name(device_name: str) -> str:
    """A device name without what differs between drivers."""
    return " ".join(device_name.replace("-", " ").casefold().split())


@dataclass(frozen=True, slots=True)
class ModelGeometry:
    """What decides the size of a model's KV. `dtype` is that of weights and KV."""

    name: str
    num_layers: PositiveInt
    num_kv_heads: PositiveInt
    head_size: PositiveInt
    dtype: DType

    __pydantic_config__ = _STRICT

    def has_kv_like(self, other: ModelGeometry) -> bool:
        """Whether blocks of both are of one size and shape; fine-tunes share it."""
        return self._shape == other._shape

    @property
    def _shape(self) -> tuple[int, int, int, str]:
        return (self.num_layers, self.num_kv_heads, self.head_size, self.dtype)

    def kv_bytes_per_token(self, tensor_parallel_size: int) -> int:
        """On one rank. A head is never divided: more ranks than heads hold copies."""
        heads_per_rank = max(1, self.num_kv_heads // tensor_parallel_size)
        return 2 * self.num_layers * heads_per_rank * self.head_size * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Versions:
    """What the numbers were taken with; None for software that had no part in them."""

    stream2llm: str | None
    vllm: str | None
    torch: str | None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class Units:
    """Written into every file, so that nobody has to guess."""

    time: Literal["s"]
    recompute: Literal["tokens"]
    swap: Literal["blocks"]

    __pydantic_config__ = _STRICT


NOTHING_RAN = Versions(stream2llm=None, vllm=None, torch=None)
UNITS = Units(time="s", recompute="tokens", swap="blocks")


@dataclass(frozen=True, slots=True)
class RecomputePoint:
    """Computing so many tokens behind a context took so long.

    The context is empty or ends where an earlier point of the section ends:
    both a run from nothing and the steps of one chunked run are told this way.
    """

    num_tokens: PositiveInt
    num_context_tokens: NonNegativeInt
    seconds: PositiveFloat

    __pydantic_config__ = _STRICT

    @property
    def end(self) -> int:
        """Tokens that are computed afterwards."""
        return self.num_context_tokens + self.num_tokens


@dataclass(frozen=True, slots=True)
class SwapPoint:
    """Copying so many blocks one way took so long."""

    num_blocks: PositiveInt
    seconds: PositiveFloat

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class RecomputeSection:
    """Prefill. By growing `end`; each reaches further, and later, than the one before."""

    provenance: Provenance
    # Token budget of the engine steps that the points are made of.
    token_budget: PositiveInt
    points: tuple[RecomputePoint, ...]

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class SwapSection:
    """Copies one way, by growing number of blocks."""

    provenance: Provenance
    points: tuple[SwapPoint, ...]

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class CostProfile:
    """What one model costs on one accelerator."""

    schema_version: Literal[1]
    units: Units
    accelerator: Accelerator
    model: ModelGeometry
    tensor_parallel_size: PositiveInt
    # Tokens of one KV block.
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
        """On one rank."""
        return self.model.kv_bytes_per_token(self.tensor_parallel_size)

    @property
    def kv_bytes_per_block(self) -> int:
        """On one rank."""
        return self.block_size * self.kv_bytes_per_token


class Costs(Protocol):
    """The three questions a scheduler asks; all answers in seconds."""

    def recompute_s(self, from_token: int, to_token: int) -> float:
        """Computing tokens [from, to) behind [0, from)."""

    def swap_out_s(self, num_blocks: int) -> float:
        """Copying KV blocks to the host."""

    def swap_in_s(self, num_blocks: int) -> float:
        """Copying KV blocks back."""
