"""What the front end of a decode worker asks of its scheduler, and what it hears back. Plain values.

Orders travel in `SamplingParams.extra_args`, results in `kv_transfer_params` of
outputs, under HANDOVER_KEY. Without one a request is an answer like any other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from stream2llm.api.handover import HANDOVER_KEY


@dataclass(frozen=True, slots=True)
class FetchOrder:
    """The request is no answer: fetch the KV of its first tokens into the prefix cache."""

    session_id: str
    # Whole blocks. The request has one token more, so that all of them can be found.
    num_blocks: int
    # When the session's KV was last touched here, by the machine's monotonic
    # clock: only what nobody used since may be evicted for it.
    since_s: float


@dataclass(frozen=True, slots=True)
class FinalOrder:
    """The request is an answer; of a session whose KV was prefetched, if it names one."""

    session_id: str = ""


class FetchEnd(StrEnum):
    """How a fetch ended."""

    # Everything is in the prefix cache.
    FETCHED = "fetched"
    # Decode had no room or no time for it; nothing was read.
    REFUSED = "refused"
    # Somebody gave it up; what was read is not kept.
    ABORTED = "aborted"
    # The read failed, or ended after the lease; nothing is kept.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FetchResult:
    """The end of a fetch."""

    end: FetchEnd
    # Why not, where that is known.
    reason: str = ""
    # Blocks that crossed, and the seconds from the begin of the read to its end.
    num_blocks: int = 0
    seconds: float = 0.0
    # Over all layers and ranks.
    bytes_per_block: int = 0

    def to_wire(self) -> dict[str, Any]:
        """For an output's `kv_transfer_params`."""
        return {HANDOVER_KEY: {"result": asdict(self)}}

    @classmethod
    def from_wire(cls, params: dict[str, Any] | None) -> FetchResult | None:
        """The inverse; None when there is none."""
        raw = (params or {}).get(HANDOVER_KEY, {}).get("result")
        return None if raw is None else cls(**{**raw, "end": FetchEnd(raw["end"])})


def order_to_wire(order: FetchOrder | FinalOrder) -> dict[str, Any]:
    """For `SamplingParams.extra_args`."""
    kind = "fetch" if isinstance(order, FetchOrder) else "final"
    return {HANDOVER_KEY: {kind: asdict(order)}}


def order_from_wire(extra_args: dict[str, Any] | None) -> FetchOrder | FinalOrder | None:
    """The inverse; None for a request without."""
    raw = (extra_args or {}).get(HANDOVER_KEY)
    if not raw:
        return None
    return FetchOrder(**raw["fetch"]) if "fetch" in raw else FinalOrder(**raw["final"])


@dataclass(frozen=True, slots=True)
class LocalTokens:
    """What was here of an answer's prompt before the answer came."""

    num_tokens: int
    # Over all layers and ranks.
    bytes_per_block: int = 0

    def to_wire(self) -> dict[str, Any]:
        """For an output's `kv_transfer_params`."""
        return {HANDOVER_KEY: {"local": asdict(self)}}

    @classmethod
    def from_wire(cls, params: dict[str, Any] | None) -> LocalTokens | None:
        """The inverse; None when there is nothing of it."""
        raw = (params or {}).get(HANDOVER_KEY, {}).get("local")
        return None if raw is None else cls(**raw)
