"""Values that a decode worker's front end and its scheduler exchange.

Orders travel in `SamplingParams.extra_args`, results in `kv_transfer_params` of
outputs, under HANDOVER_KEY. A request without an order is an ordinary answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from stream2llm.api.handover import HANDOVER_KEY


@dataclass(frozen=True, slots=True)
class FetchOrder:
    """Asks to fetch the KV of the request's first tokens into the prefix cache; no answer."""

    session_id: str
    # Whole blocks. The request has one more token, so that the cache can hit all of them.
    num_blocks: int
    # Last use of the session's KV here, in seconds of the machine's monotonic clock:
    # the fetch may evict only blocks that have not been used since.
    since_s: float
    # `BlockKeys.to_wire` of its tokens; empty where KV is not checked.
    block_keys: bytes = b""


@dataclass(frozen=True, slots=True)
class FinalOrder:
    """Asks for an answer; `session_id` names the session whose KV was prefetched, if any."""

    session_id: str = ""
    # `BlockKeys.to_wire` of the prompt without the first token of the answer.
    block_keys: bytes = b""


class FetchEnd(StrEnum):
    """How a fetch ended."""

    # Everything is in the prefix cache.
    FETCHED = "fetched"
    # Decode had no room or no time for it; nothing was read.
    REFUSED = "refused"
    # The client or an update cancelled it; what was read is not kept.
    ABORTED = "aborted"
    # The read failed, or ended after the lease; nothing is kept.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FetchResult:
    """The outcome of a fetch."""

    end: FetchEnd
    # Why it did not succeed, where that is known.
    reason: str = ""
    # Number of blocks read, and the duration of the read.
    num_blocks: int = 0
    seconds: float = 0.0
    # Over all layers and ranks.
    bytes_per_block: int = 0

    def to_wire(self) -> dict[str, Any]:
        """Returns the value for an output's `kv_transfer_params`."""
        return {HANDOVER_KEY: {"result": asdict(self)}}

    @classmethod
    def from_wire(cls, params: dict[str, Any] | None) -> FetchResult | None:
        """Inverse of `to_wire`; None when `params` hold no result."""
        raw = (params or {}).get(HANDOVER_KEY, {}).get("result")
        return None if raw is None else cls(**{**raw, "end": FetchEnd(raw["end"])})


def order_to_wire(order: FetchOrder | FinalOrder) -> dict[str, Any]:
    """Returns the value for `SamplingParams.extra_args`."""
    kind = "fetch" if isinstance(order, FetchOrder) else "final"
    return {HANDOVER_KEY: {kind: asdict(order)}}


def order_from_wire(extra_args: dict[str, Any] | None) -> FetchOrder | FinalOrder | None:
    """Inverse of `order_to_wire`; None for a request without an order."""
    raw = (extra_args or {}).get(HANDOVER_KEY)
    if not raw:
        return None
    return FetchOrder(**raw["fetch"]) if "fetch" in raw else FinalOrder(**raw["final"])


@dataclass(frozen=True, slots=True)
class LocalTokens:
    """The part of an answer's prompt whose KV was here before the answer arrived."""

    num_tokens: int
    # Over all layers and ranks.
    bytes_per_block: int = 0
    # When the rest of its KV had been read, in seconds of the machine's monotonic clock; 0: there
    # was nothing to read.
    read_s: float = 0.0

    def to_wire(self) -> dict[str, Any]:
        """Returns the value for an output's `kv_transfer_params`."""
        return {HANDOVER_KEY: {"local": asdict(self)}}

    @classmethod
    def from_wire(cls, params: dict[str, Any] | None) -> LocalTokens | None:
        """Inverse of `to_wire`; None when `params` hold no such value."""
        raw = (params or {}).get(HANDOVER_KEY, {}).get("local")
        return None if raw is None else cls(**raw)
