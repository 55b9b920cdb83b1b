"""Whether a decode worker has room to prefetch a session's KV. Pure.

No request holds fetched blocks: they stay in the prefix cache until their session's
answer takes them, and may be evicted like all others. A fetch takes resources from
three sides, each with its own rule:

- memory of decoding answers: a reserve of blocks stays free for them while a fetch
  lasts, since it cannot be preempted, and no fetch begins while a request waits
  for memory;
- cached blocks: a fetch may evict only blocks that have not been used since its
  own session's KV was, so that two sessions never evict each other in turn;
- decode time: see pace.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Room(StrEnum):
    """Whether a fetch may begin, and why not."""

    YES = "yes"
    # Every block is here already.
    NOTHING_TO_FETCH = "nothing_to_fetch"
    # Answers need the memory, or wait for it.
    NO_MEMORY = "no_memory"
    # It would evict blocks that were used more recently.
    NO_EVICTION = "no_eviction"


@dataclass(frozen=True, slots=True)
class RoomView:
    """A decode worker's memory as seen by one fetch. Counts are of blocks."""

    # Blocks that the fetch needs and the prefix cache does not have.
    num_missing: int
    # Blocks that no request holds, cached ones included.
    num_free: int
    # Free blocks among the fetch's cache hits: the fetch holds them, too.
    num_free_hits: int
    # Blocks that running answers may need before the fetch has ended.
    num_reserved: int
    # Free blocks, in the order in which they would be taken, up to the first
    # that was used more recently than this session's KV. At most `num_missing`.
    num_yielding: int


def room_for(view: RoomView) -> Room:
    """Decides whether the fetch may begin."""
    if not view.num_missing:
        return Room.NOTHING_TO_FETCH
    num_taken = view.num_missing + view.num_free_hits
    if num_taken + view.num_reserved > view.num_free:
        return Room.NO_MEMORY
    if view.num_yielding < view.num_missing:
        return Room.NO_EVICTION
    return Room.YES
