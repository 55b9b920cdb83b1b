"""Counts which blocks prefetched for one session were used. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settled:
    """A session's hand-over at its end, in blocks."""

    # Prefetched, and part of the prompt.
    prefetched: int = 0
    # Read after the seal, a partly filled last block included.
    after_seal: int = 0
    # Prefetched, but never used: an update replaced them, they were evicted, or the
    # session ended without an answer.
    wasted: int = 0


class FetchLedger:
    """The prefetched blocks of one session."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        # Block indices in the present sequence.
        self._fetched: set[int] = set()
        self._num_wasted = 0

    def spliced(self, num_kept_tokens: int) -> None:
        """The sequence has changed behind its first `num_kept_tokens` tokens."""
        self._drop(num_kept_tokens // self._block_size)

    def fetched(self, num_tokens: int, num_blocks: int) -> None:
        """A fetch of the first `num_tokens` tokens has read the last `num_blocks` of their blocks."""
        last = num_tokens // self._block_size
        self._fetched.update(range(last - num_blocks, last))

    def settle(self, num_prompt_tokens: int, num_local_tokens: int) -> Settled:
        """The answer begins; `num_local_tokens` tokens of its prompt were here."""
        self._drop(num_local_tokens // self._block_size)
        num_left = max(num_prompt_tokens - num_local_tokens, 0)
        settled = Settled(len(self._fetched), -(-num_left // self._block_size), self._num_wasted)
        self._fetched.clear()
        self._num_wasted = 0
        return settled

    def give_up(self) -> Settled:
        """The session ends; unsettled blocks count as wasted. May be called again."""
        self._drop(0)
        settled = Settled(wasted=self._num_wasted)
        self._num_wasted = 0
        return settled

    def _drop(self, first: int) -> None:
        """Counts fetched blocks from index `first` on as wasted."""
        lost = {index for index in self._fetched if index >= first}
        self._num_wasted += len(lost)
        self._fetched -= lost
