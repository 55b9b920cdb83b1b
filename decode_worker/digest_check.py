"""Decides whether KV that was read is what prefill computed. Pure.

The digest of a hand-over came with its transfer parameters; the ranks sample the blocks that
they have read (stream2llm/engine/kv_sampling.py). Nothing is used of a read with a bad block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from decode_worker.fetch_orders import FetchOrder, FinalOrder
from stream2llm.api.handover import HANDOVER_KEY
from stream2llm.engine.kv_digest import (
    DIGEST_KEY,
    BadValue,
    Part,
    SampleJob,
    bad_values,
    combine,
    keys_from_wire,
)

# Bad values that a log line names.
_MAX_NAMED = 8

Transfer = Mapping[str, Any]


def job_for(
    order: FetchOrder | FinalOrder | None, transfer: Transfer, block_ids: list[int], size: int
) -> SampleJob | None:
    """Returns how to sample the blocks into which the last of the hand-over's blocks are read.

    None when the request has not as many keys: then nothing can be compared, and the read fails.
    """
    keys = keys_from_wire(order.block_keys if order is not None else b"")
    num_tokens = transfer["remote_num_tokens"]
    if len(keys) != -(-num_tokens // size) or len(block_ids) > len(keys):
        return None
    return SampleJob.of_last(block_ids, keys, num_tokens, size)


class ReadCheck:
    """The samples of one engine's reads, until each read is judged."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._parts: dict[str, list[Part]] = {}

    def take(self, parts: Mapping[str, list[Part]]) -> None:
        """Takes what ranks have sampled, by request."""
        for request_id, each in parts.items():
            self._parts.setdefault(request_id, []).extend(each)

    def judge(self, request_id: str, transfer: Transfer) -> BadKv | None:
        """Returns what is wrong with a read that has ended on all ranks; None for a right one."""
        parts = self._parts.pop(request_id, [])
        num_blocks = len(transfer["remote_block_ids"][0])
        digest = transfer.get(DIGEST_KEY, b"")
        if not digest:
            return BadKv(num_blocks, "the hand-over has no digest")
        if len(parts) != self._num_ranks:
            return BadKv(num_blocks, f"{len(parts)} of {self._num_ranks} ranks have sampled")
        if len({part.rows.shape for part in parts}) > 1:
            return BadKv(num_blocks, "the ranks have sampled different blocks")
        bad = bad_values(digest, combine(parts), num_blocks)
        return BadKv(len({each.block for each in bad}), _named(bad)) if bad else None

    def forget(self, request_id: str) -> None:
        """The request has ended before its read was judged."""
        self._parts.pop(request_id, None)


def _named(bad: list[BadValue]) -> str:
    first = ", ".join(f"block {each.block} layer {each.layer}" for each in bad[:_MAX_NAMED])
    return f"{len(bad)} values differ: {first}{', ...' if len(bad) > _MAX_NAMED else ''}"


@dataclass(frozen=True, slots=True)
class BadKv:
    """KV that was read and is not what prefill computed."""

    num_blocks: int
    # Which values differ, by place only.
    what: str

    def to_wire(self) -> dict[str, Any]:
        """Returns the value for an output's `kv_transfer_params`."""
        return {HANDOVER_KEY: {"bad": asdict(self)}}

    @classmethod
    def from_wire(cls, params: Mapping[str, Any] | None) -> BadKv | None:
        """Inverse of `to_wire`; None when `params` hold no such value."""
        raw = (params or {}).get(HANDOVER_KEY, {}).get("bad")
        return None if raw is None else cls(**raw)
