"""A session's progress as reported to the client, and its credit. Pure.

Figures change in two places: here, when an event arrives (received), and at the prefill
worker (everything else), whose reports lag behind. `prefilled` is kept a lower bound: a
splice lowers it to what the splice keeps.

Credit is the window minus the tokens not prefilled yet. It counts from the most that
was ever prefilled of the current sequence: KV lost to a preemption must not close the
window, because the seal that would restore it may be next. One token does not count:
prefill holds the last one back until the seal.

A lost worker takes all of it along: its successor, which begins with nothing, reports
figures of its own, and the client gets the sums.
"""

from __future__ import annotations

from router.draining import PrefillWork
from stream2llm.api.events import Progress
from stream2llm.api.prefill_progress import PrefillProgress


class ProgressTracker:
    """The figures of one session."""

    def __init__(self, window_tokens: int) -> None:
        self._window_tokens = window_tokens
        self._received = 0
        self._last_sequence = 0
        self._prefilled = 0
        self._most_prefilled = 0
        self._revision = 0
        # Splices that the worker has not confirmed: (revision, keep_tokens). A list, because there
        # are few and an empty deque has 600 bytes.
        self._unconfirmed: list[tuple[int, int]] = []
        # As the worker reports it that holds the session.
        self.worker = PrefillProgress()
        # Sum over the workers that held it before, as `PrefillProgress.used`.
        self._used_before = self.worker.used()
        self.restarts = 0
        # Tokens that the former worker had, and this one did not compute yet.
        self._owed_tokens = 0

    def event(self, sequence: int) -> None:
        """An event left the token sequence unchanged."""
        self._last_sequence = sequence

    def splice(self, sequence: int, keep_tokens: int, num_tokens: int) -> int:
        """An event changed the sequence; returns the splice's revision."""
        self._revision += 1
        self._unconfirmed.append((self._revision, keep_tokens))
        self._prefilled = min(self._prefilled, keep_tokens)
        self._most_prefilled = min(self._most_prefilled, keep_tokens)
        self._received = num_tokens
        self._last_sequence = sequence
        return self._revision

    def restarted(self, revision: int) -> None:
        """Another worker begins with the sequence of that revision."""
        self.restarts += 1
        self._owed_tokens = max(self._prefilled, self._owed_tokens)
        self._prefilled = self._most_prefilled = 0
        self._used_before, self.worker = self.used(), PrefillProgress()
        self._confirm(revision)

    def used(self) -> dict[str, int]:
        """What all workers together did for the session, by the names in Progress and Usage."""
        before = self._used_before
        return {name: before[name] + number for name, number in self.worker.used().items()}

    def report(self, figures: PrefillProgress) -> int:
        """Takes the worker's figures, which may not include the latest splices.

        Returns how many tokens more a former worker had computed as well.
        """
        self._confirm(figures.revision)
        num_again = min(figures.computed_tokens - self.worker.computed_tokens, self._owed_tokens)
        num_again = max(num_again, 0)
        self._owed_tokens -= num_again
        kept = min((keep for _, keep in self._unconfirmed), default=figures.prefilled_tokens)
        self._prefilled = min(figures.prefilled_tokens, kept)
        self._most_prefilled = max(self._most_prefilled, self._prefilled)
        self.worker = figures
        return num_again

    def _confirm(self, revision: int) -> None:
        while self._unconfirmed and self._unconfirmed[0][0] <= revision:
            self._unconfirmed.pop(0)

    @property
    def num_outstanding_tokens(self) -> int:
        """Tokens received that have to be prefilled before a seal."""
        return max(self._received - 1 - self._most_prefilled, 0)

    def work(self, tokens_per_s: float | None, *, is_sealed: bool) -> PrefillWork:
        """What the session has at its worker, which computes so many tokens a second."""
        return PrefillWork(is_sealed, self._prefilled, self.num_outstanding_tokens, tokens_per_s)

    @property
    def has_credit(self) -> bool:
        return self.num_outstanding_tokens < self._window_tokens

    @property
    def is_caught_up(self) -> bool:
        """Whether prefill waits for more context."""
        return self._prefilled >= self._received - 1

    def figures(self) -> Progress:
        """Returns the figures for the client."""
        return Progress(
            last_sequence=self._last_sequence,
            received_tokens=self._received,
            prefilled_tokens=self._prefilled,
            credit_tokens=max(self._window_tokens - self.num_outstanding_tokens, 0),
            delay=self.worker.delay,
            restarts=self.restarts,
            **self.used(),
        )
