"""Decides how much of a context is worth handing over before the seal. Pure.

KV that is transferred to decode and then replaced was transferred in vain. An appended
document is stable. In update-mode a document is stable when it has survived an update:
it and all before it had the same positions in the list before. Early results of a
retrieval are the least certain; unchanged ones tend to stay. A client that knows more
can say so (`Document.stays`).
"""

from __future__ import annotations

from collections.abc import Iterable

from stream2llm.api.arguments import refused

# A document with at least this probability counts as one that has survived an update.
SURE = 0.9


def check_sureness(stays: Iterable[float | None]) -> None:
    """Raises InvalidRequestError for a probability outside [0, 1], NaN included."""
    for index, sureness in enumerate(stays):
        if sureness is not None and not 0 <= sureness <= 1:
            raise refused(f"update.documents[{index}].stays", sureness, "in [0, 1]")


def num_sure(stays: Iterable[float | None]) -> int:
    """Returns how many leading documents of a list their client is sure of."""
    count = 0
    for sureness in stays:
        if sureness is None or sureness < SURE:
            break
        count += 1
    return count


class Stability:
    """Follows one session's events to determine how many leading tokens are stable."""

    def __init__(self, num_prefix_tokens: int) -> None:
        # The template's prefix never changes.
        self._num_prefix_tokens = num_prefix_tokens
        self._is_update_mode = False
        self._num_stable_tokens = num_prefix_tokens

    @property
    def num_stable_tokens(self) -> int:
        """Number of stable tokens from the start of the sequence, the prefix included."""
        return self._num_stable_tokens

    def appended(self, num_tokens: int) -> int:
        """Documents were appended; the sequence has `num_tokens` tokens now."""
        if not self._is_update_mode:
            self._num_stable_tokens = num_tokens
        return self._num_stable_tokens

    def updated(self, num_kept_tokens: int, num_sure_tokens: int = 0) -> int:
        """A new list was sent, which keeps the first `num_kept_tokens` tokens.

        The client is sure of the first `num_sure_tokens`.
        """
        self._is_update_mode = True
        self._num_stable_tokens = max(num_kept_tokens, num_sure_tokens, self._num_prefix_tokens)
        return self._num_stable_tokens

    def sealed(self, num_tokens: int) -> int:
        """The sequence is final."""
        self._num_stable_tokens = num_tokens
        return num_tokens
