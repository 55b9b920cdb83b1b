"""The work that one session has in the queue of its prefill worker."""

from __future__ import annotations

from router.progress import ProgressTracker
from router.work_queue import WorkQueue
from stream2llm.api.tenant import TenantShare
from stream2llm.serving.system.clock import Clock


class QueuedWork:
    """Counts what is left to compute, from `enter` to `leave`."""

    def __init__(self, clock: Clock, share: TenantShare) -> None:
        self._clock = clock
        self._share = share
        # None before the session is placed, and once its prompt is computed.
        self._queue: WorkQueue | None = None

    def enter(self, queue: WorkQueue) -> None:
        """The worker with that queue has the session."""
        self._queue = queue

    def note(self, progress: ProgressTracker, due_in_s: float | None) -> None:
        """Takes the present figures; the first token is due in `due_in_s`, None without a deadline."""
        if self._queue is not None:
            now_s = self._clock.monotonic_s()
            self._queue.note(
                id(self),
                progress.num_outstanding_tokens,
                progress.worker.computed_tokens,
                now_s,
                None if due_in_s is None else now_s + due_in_s,
                tenant=self._share,
            )

    def leave(self) -> None:
        """Nothing is left, or the worker does not have the session any more."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.leave(id(self), self._clock.monotonic_s())
