"""The KV blocks of a simulated prefill worker: held by sessions, hand-overs and offers.

A block has one session or hand-over at most, and any number of offers, which outlive what
their session does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class KvBlocks:
    """Which blocks are free."""

    def __init__(self, num_blocks: int) -> None:
        self._free = list(range(num_blocks - 1, -1, -1))
        # Number of offers, by block.
        self._pins: Counter[int] = Counter()
        # Blocks that offers hold, and no session any more.
        self._orphans: set[int] = set()

    @property
    def num_free(self) -> int:
        """Number of blocks that nothing holds."""
        return len(self._free)

    def num_holders(self, block: int) -> int:
        """The session of a block, and its offers: nothing else is shared."""
        return 1 + self._pins[block]

    def grow(self, held: list[int], num_blocks: int) -> None:
        """Takes free blocks until `held` has at least `num_blocks`."""
        num_more = num_blocks - len(held)
        if num_more > 0:
            held.extend(self._free[-num_more:])
            del self._free[-num_more:]

    def let_go(self, blocks: Sequence[int]) -> None:
        """Their session, or their hand-over, holds them no more."""
        if not self._pins:
            self._free.extend(blocks)
            return
        for block in blocks:
            (self._orphans.add if self._pins[block] else self._free.append)(block)

    def pin(self, blocks: Sequence[int]) -> None:
        """An offer holds them."""
        self._pins.update(blocks)

    def unpin(self, blocks: Sequence[int]) -> None:
        """An offer has ended."""
        self._pins.subtract(blocks)
        for block in blocks:
            if not self._pins[block]:
                del self._pins[block]
                if block in self._orphans:
                    self._orphans.discard(block)
                    self._free.append(block)
