"""Keeps the digests of an engine's KV blocks, and decides which blocks to sample in a step. Pure.

A block is sampled in the step that completes it, so what travels with an offer or a hand-over
is how its KV was when it was computed. A row belongs to a block and the key of its content
(stream2llm/engine/kv_digest.py): sessions that share a cached block share its row.

    written in a step -> sampled at its end -> row kept until the block is written again
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stream2llm.engine.kv_digest import BlockKeys, Rows, SampleJob, rows_to_wire


@dataclass(frozen=True, slots=True)
class Written:
    """What a step does to one session. Counts are of tokens from its start."""

    request_id: str
    # The whole sequence.
    tokens: Sequence[int]
    # Returns its blocks [first, stop).
    block_ids: Callable[[int, int], Sequence[int]]
    # Computed before the step and after it; equal for a session that the step leaves alone.
    num_before: int
    num_after: int
    # Its context is complete: a last block that is not full is handed over as it is.
    is_sealed: bool

    @property
    def is_complete(self) -> bool:
        """Whether all of its KV has been computed after the step."""
        return self.is_sealed and self.num_after == len(self.tokens)


class BlockDigests:
    """The rows of an engine's blocks, and the keys of its live sessions."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._keys: dict[str, BlockKeys] = {}
        # Sessions with computed blocks that have no key yet.
        self._behind: set[str] = set()
        # Key and row of a block's content, by block id.
        self._rows: dict[int, tuple[int, bytes]] = {}
        # Key of a session's last block, which is not full.
        self._partial: dict[str, int] = {}
        # Blocks of the step under way, with their keys.
        self._asked: list[tuple[int, int]] = []

    def touch(self, request_id: str, num_computed_tokens: int) -> None:
        """The session has so many computed tokens now."""
        keys = self._keys.setdefault(request_id, BlockKeys(self._block_size))
        num_full = num_computed_tokens // self._block_size
        keys.cut(num_full)
        if len(keys) < num_full:
            self._behind.add(request_id)
        else:
            self._behind.discard(request_id)

    def forget(self, request_id: str) -> None:
        """The session has ended; rows of its blocks stay for others that share them."""
        self._keys.pop(request_id, None)
        self._partial.pop(request_id, None)
        self._behind.discard(request_id)

    @property
    def behind(self) -> frozenset[str]:
        """Sessions that got blocks otherwise than by computing them; to be passed to `plan`."""
        return frozenset(self._behind)

    def overwritten(self, block_ids: Iterable[int]) -> None:
        """These blocks have got KV otherwise than by computing it."""
        for block_id in block_ids:
            self._rows.pop(block_id, None)

    def plan(self, written: Iterable[Written]) -> SampleJob | None:
        """Returns the blocks to sample after a step that does this; None if there are none."""
        asked: dict[int, tuple[int, int]] = {}
        for each in written:
            self._plan_one(each, asked)
        self._asked = [(block_id, key) for block_id, (key, _) in asked.items()]
        if not asked:
            return None
        return SampleJob(
            np.array(list(asked), dtype=np.int64),
            np.array([key for key, _ in asked.values()], dtype=np.uint64),
            np.array([filled for _, filled in asked.values()], dtype=np.int64),
        )

    def _plan_one(self, each: Written, asked: dict[int, tuple[int, int]]) -> None:
        """Adds the session's blocks to `asked`: block id to key and number of filled slots."""
        size = self._block_size
        keys = self._keys.setdefault(each.request_id, BlockKeys(size))
        first, first_written = len(keys), each.num_before // size
        num_full, num_rest = divmod(each.num_after, size)
        keys.extend(each.tokens, num_full)
        self._behind.discard(each.request_id)
        first = min(first, first_written)
        for index, block_id in enumerate(each.block_ids(first, num_full), first):
            key = keys[index]
            if index >= first_written or not self._has_row(block_id, key):
                asked[block_id] = (key, size)
        if num_rest and each.is_complete:
            key = keys.partial(each.tokens[num_full * size :])
            self._partial[each.request_id] = key
            (last,) = each.block_ids(num_full, num_full + 1)
            asked[last] = (key, num_rest)

    def _has_row(self, block_id: int, key: int) -> bool:
        known = self._rows.get(block_id)
        return known is not None and known[0] == key

    def take(self, rows: Rows) -> None:
        """Takes the samples of the step's blocks, in the order of its job."""
        asked, self._asked = self._asked, []
        assert len(rows) == len(asked), f"{len(rows)} blocks were sampled of {len(asked)}"
        for (block_id, key), row in zip(asked, rows_to_wire(rows), strict=True):
            self._rows[block_id] = (key, row)

    def num_sampled_blocks(self, request_id: str) -> int:
        """Returns how many of the session's full blocks, from its start, have a row."""
        return len(self._keys.get(request_id, ()))

    def digest(self, request_id: str, block_ids: Sequence[int]) -> bytes:
        """Returns the rows of the session's first blocks; empty unless all of them have one."""
        keys = self._keys.get(request_id)
        rows = []
        for index, block_id in enumerate(block_ids):
            key = self._key(request_id, keys, index)
            if key is None or not self._has_row(block_id, key):
                return b""
            rows.append(self._rows[block_id][1])
        return b"".join(rows)

    def _key(self, request_id: str, keys: BlockKeys | None, index: int) -> int | None:
        if keys is not None and index < len(keys):
            return keys[index]
        return self._partial.get(request_id)
