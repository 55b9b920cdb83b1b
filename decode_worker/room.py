"""Whether a decode worker has room to prefetch KV of its seal. Pure.

Fetched blocks are nobody's: they lie in the prefix cache until their session's
answer takes them, and may be evicted like all others. So what a fetch takes it
takes from three others, and each has a rule here:

- from answers that decode: they keep a reserve of free blocks while a fetch
  lasts (it cannot be preempted), and nothing is fetched while anybody waits for
  memory;
- from cached blocks: those may go that nobody has used since this session's own
  KV was last touched. So two sessions never evict each other's head in turn;
- from the time of answers: that is pace.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Room(StrEnum):
    """The answer."""

    YES = "yes"
    # Every block is here already.
    NOTHING_TO_FETCH = "nothing_to_fetch"
    # Answers need the memory, or wait for it.
    NO_MEMORY = "no_memory"
    # It would cost blocks that were used more recently.
    NO_EVICTION = "no_eviction"


@dataclass(frozen=True, slots=True)
class RoomView:
    """A decode worker's memory as one fetch sees it. Counts are of blocks."""

    # Of the fetch; those that the prefix cache has do not count.
    num_missing: int
    # Nobody holds them; cached ones count.
    num_free: int
    # Free blocks among those that the fetch finds in the cache: it holds them, too.
    num_free_hits: int
    # What running answers may need before the fetch has ended.
    num_reserved: int
    # Free blocks, in the order in which they would be taken, up to the first
    # that was used more recently than this session's KV. At most `num_missing`.
    num_yielding: int
    # An answer waits for memory, or was preempted just now.
    is_short: bool = False


def room_for(view: RoomView) -> Room:
    """Whether the fetch may begin."""
    if not view.num_missing:
        return Room.NOTHING_TO_FETCH
    num_taken = view.num_missing + view.num_free_hits
    if view.is_short or num_taken + view.num_reserved > view.num_free:
        return Room.NO_MEMORY
    if view.num_yielding < view.num_missing:
        return Room.NO_EVICTION
    return Room.YES
