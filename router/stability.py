"""How much of a context is worth handing over before the seal. Pure.

KV that crosses to decode and is then replaced was moved in vain. An appended
document stays. In update-mode a document stays when it has survived an update:
it and all before it stood in the same place in the list before. What a
retrieval sends first is the least certain; what came back unchanged tends to
stay. A client that knows more says so (`Document.stays`).
"""

from __future__ import annotations

from collections.abc import Iterable

# A document that the client is so sure of counts as one that has survived an update.
SURE = 0.9


def num_sure(stays: Iterable[float | None]) -> int:
    """How many leading documents of a list their client is sure of."""
    count = 0
    for sureness in stays:
        if sureness is None or sureness < SURE:
            break
        count += 1
    return count


class Stability:
    """Follows one session's events; tells how many leading tokens are stable."""

    def __init__(self, num_prefix_tokens: int) -> None:
        # The template's prefix never changes.
        self._num_prefix_tokens = num_prefix_tokens
        self._is_update_mode = False
        self._num_stable_tokens = num_prefix_tokens

    @property
    def num_stable_tokens(self) -> int:
        """From the start of the sequence, the prefix included."""
        return self._num_stable_tokens

    def appended(self, num_tokens: int) -> int:
        """Documents came at the end; the sequence has `num_tokens` now."""
        if not self._is_update_mode:
            self._num_stable_tokens = num_tokens
        return self._num_stable_tokens

    def updated(self, num_kept_tokens: int, num_sure_tokens: int = 0) -> int:
        """A new list came, which leaves the first `num_kept_tokens` as they were.

        The client is sure of the first `num_sure_tokens`.
        """
        self._is_update_mode = True
        self._num_stable_tokens = max(num_kept_tokens, num_sure_tokens, self._num_prefix_tokens)
        return self._num_stable_tokens

    def sealed(self, num_tokens: int) -> int:
        """Nothing changes any more."""
        self._num_stable_tokens = num_tokens
        return num_tokens
