"""Moves an answer under way from a worker that drains to another one."""

from __future__ import annotations

from router.draining import leaves_decode
from router.live_session import LiveSession
from router.recovery import AnswerLostError, drained
from router.sealed_answer import SealedAnswer
from router.worker import Worker


def leave_draining(live: LiveSession, sealed: SealedAnswer, worker: Worker) -> None:
    """Between two steps: raises AnswerLostError when the answer goes on at another worker."""
    if worker.drain_by_s is None or not live.recovery.may_move:
        return
    left_s = worker.drain_by_s - live.parts.clock.monotonic_s()
    num_left = sealed.max_tokens - sealed.answer.num_tokens
    if leaves_decode(num_left, worker.token_s, left_s) and _can_leave(live, sealed, worker):
        raise AnswerLostError(drained(worker, worker.address.role))


def _can_leave(live: LiveSession, sealed: SealedAnswer, worker: Worker) -> bool:
    """Returns whether other workers can take the answer, and prefill has the KV memory to compute it again."""
    workers, but = live.parts.workers, {*live.refused_by, worker}
    begins_at = workers.pick("prefill", but)
    if begins_at is None or not (begins_at.answers or workers.pick("decode", but)):
        return False
    return live.lengths.why_not_resumed(sealed.num_tokens) is None
