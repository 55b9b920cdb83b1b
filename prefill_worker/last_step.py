"""The outcome of the last step, which says whether another one could do anything. Pure."""

from __future__ import annotations

from prefill_worker.types import StepPlan


class LastStep:
    """Records whether a step served any session, and which ones wait for a prefix cache hit."""

    def __init__(self) -> None:
        # Sessions that it left out because of such a hit, and whether it did nothing else.
        self.deduplicated: tuple[str, ...] = ()
        self._only_deduplicated = False
        # Number of free blocks with which it could serve no session, while nothing has
        # changed since.
        self._stuck_with_free_blocks: int | None = None

    def note(self, plan: StepPlan, num_free_blocks: int) -> None:
        """A step of this plan was made; `num_free_blocks` is what was free for it."""
        self.deduplicated, self._only_deduplicated = plan.deduplicated, not plan.does_something
        if not plan.does_something and not plan.deduplicated:
            self._stuck_with_free_blocks = num_free_blocks

    def note_change(self) -> None:
        """A session or a block has changed, so another step may do what this one could not."""
        self._stuck_with_free_blocks = None

    def is_stuck(self, num_free_blocks: int) -> bool:
        """Whether it could serve no session, nor could another with that many free blocks."""
        return self._stuck_with_free_blocks == num_free_blocks

    def repeats(self, plan: StepPlan) -> bool:
        """Whether the plan leaves out only what this step, which did nothing, left out, too."""
        before = self.deduplicated if self._only_deduplicated else ()
        return set(plan.deduplicated).issubset(before)
