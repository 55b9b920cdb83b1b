"""Which leading KV blocks of a sequence each worker has: what they have reported, and what is under way. Pure.

A worker that has reported nothing holds nothing: it is new, was restarted, is silent, or cannot report.
Blocks that this router has sent a worker the tokens of count as held until the worker's own word
has caught up, or the session ends. Memory is bounded by the workers' own: no worker holds more
blocks than its KV memory has, some 100 bytes each.

Caches evict sequences from their ends, so what a worker has of one is its begin, and a binary
search finds its length. Where there is a hole, the length is that of one of the begins before
or behind it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class BlockFormat(NamedTuple):
    """How a worker makes the hashes of blocks: only those of one format can be compared."""

    block_size: int
    root: bytes


@dataclass(slots=True)
class _Blocks:
    """Those of one worker."""

    format: BlockFormat
    max_blocks: int
    # Reported or sent.
    known: set[int] = field(default_factory=set)
    # Sent and not reported, the oldest first.
    sent: dict[int, None] = field(default_factory=dict)


class CachedBlocks:
    """The blocks of all workers, by the workers' ids."""

    def __init__(self) -> None:
        self._workers: dict[str, _Blocks] = {}

    # -- what workers report ------------------------------------------------------------

    def begin(self, worker_id: str, block_format: BlockFormat, max_blocks: int) -> None:
        """The worker begins a full report: what it reported before no longer holds."""
        before = self._workers.get(worker_id)
        blocks = _Blocks(block_format, max_blocks)
        if before is not None and before.format == block_format:
            blocks.sent = before.sent
            blocks.known.update(before.sent)
        self._workers[worker_id] = blocks

    def change(self, worker_id: str, added: Iterable[int], removed: Iterable[int]) -> None:
        """Blocks have left the worker's cache, and then others have entered it."""
        blocks = self._workers[worker_id]
        for each in removed:
            blocks.known.discard(each)
            blocks.sent.pop(each, None)
        for each in added:
            blocks.known.add(each)
            blocks.sent.pop(each, None)

    def forget(self, worker_id: str) -> None:
        """The worker is gone or silent: it holds nothing."""
        self._workers.pop(worker_id, None)

    # -- what this router has under way -------------------------------------------------

    def sent(self, worker_id: str, hashes: Iterable[int]) -> None:
        """The worker has been sent the tokens of these blocks, which it will compute."""
        blocks = self._workers.get(worker_id)
        if blocks is None:
            return
        for each in hashes:
            if each not in blocks.known:
                blocks.known.add(each)
                blocks.sent[each] = None
        while len(blocks.sent) > blocks.max_blocks:
            blocks.known.discard(oldest := next(iter(blocks.sent)))
            del blocks.sent[oldest]

    def ended(self, worker_id: str, hashes: Iterable[int]) -> None:
        """Blocks that were sent and that the worker has not reported will not come any more."""
        blocks = self._workers.get(worker_id)
        if blocks is None or not blocks.sent:
            return
        for each in hashes:
            if each in blocks.sent:
                del blocks.sent[each]
                blocks.known.discard(each)

    # -- what is known --------------------------------------------------------------------

    def format_of(self, worker_id: str) -> BlockFormat | None:
        """Returns how the worker makes hashes; None while it reports nothing."""
        blocks = self._workers.get(worker_id)
        return None if blocks is None else blocks.format

    def num_told(self, worker_id: str) -> int:
        """Returns how many blocks the worker has reported."""
        blocks = self._workers.get(worker_id)
        return 0 if blocks is None else len(blocks.known) - len(blocks.sent)

    def cached_blocks(self, block_format: BlockFormat, hashes: Sequence[int]) -> dict[str, int]:
        """Returns how many of the leading blocks each worker has; workers without any are left out.

        `hashes` are those of a sequence's blocks from its first one on, in that format.
        """
        if not hashes:
            return {}
        num, first, last = len(hashes), hashes[0], hashes[-1]
        backwards: Sequence[int] = ()
        found = {}
        for worker_id, blocks in self._workers.items():
            known = blocks.known
            if first not in known or blocks.format != block_format:
                continue
            if last in known:
                found[worker_id] = num
                continue
            # From the end on none is held, and then all are.
            backwards = backwards or hashes[::-1]
            found[worker_id] = num - bisect_left(backwards, True, key=known.__contains__)
        return found
