"""What became of the blocks that were prefetched for one session. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settled:
    """The end of a session's hand-over, in blocks."""

    # Fetched ahead, and part of the prompt.
    prefetched: int = 0
    # Had still to be pulled after the seal, a partly filled last one included.
    after_seal: int = 0
    # Fetched ahead, and in vain: an update replaced them, they were evicted, or
    # the session ended without an answer.
    wasted: int = 0


class FetchLedger:
    """One session's."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        # Of the present sequence, by index.
        self._fetched: set[int] = set()
        self._num_wasted = 0

    def spliced(self, num_kept_tokens: int) -> None:
        """The sequence is another one behind so many tokens."""
        self._drop(num_kept_tokens // self._block_size)

    def fetched(self, num_tokens: int, num_blocks: int) -> None:
        """A fetch of so many tokens' KV made so many blocks cross: the last of them."""
        last = num_tokens // self._block_size
        self._fetched.update(range(last - num_blocks, last))

    def settle(self, num_prompt_tokens: int, num_local_tokens: int) -> Settled:
        """The answer begins; of its prompt, so many tokens were here."""
        self._drop(num_local_tokens // self._block_size)
        num_left = max(num_prompt_tokens - num_local_tokens, 0)
        settled = Settled(len(self._fetched), -(-num_left // self._block_size), self._num_wasted)
        self._fetched.clear()
        self._num_wasted = 0
        return settled

    def give_up(self) -> Settled:
        """The session ends; what was not settled was in vain. May be called again."""
        self._drop(0)
        settled = Settled(wasted=self._num_wasted)
        self._num_wasted = 0
        return settled

    def _drop(self, first: int) -> None:
        """Blocks from that index on are no part of the prompt, or not here any more."""
        lost = {index for index in self._fetched if index >= first}
        self._num_wasted += len(lost)
        self._fetched -= lost
