"""An answer that goes on at the mixed worker that has prefilled it.

Its steps come over the session's prefill RPC: there is no hand-over, and no second place.
"""

from __future__ import annotations

from router.answer_delivery import AnswerDelivery
from router.answer_moves import leave_draining
from router.live_session import LiveSession
from router.placed_prefill import PlacedPrefill
from router.worker import Worker
from stream2llm.api.events import Finished


async def run_at_mixed_worker(
    live: LiveSession, prefill: PlacedPrefill, delivery: AnswerDelivery, worker: Worker
) -> Finished:
    """Relays the steps until the answer has ended; AnswerLostError when its worker is lost."""
    with worker.answering():
        while True:
            leave_draining(live, delivery.sealed, worker)
            step = await prefill.receive_step()
            worker.took(delivery.note_step(is_after_handover=False), len(step.token_ids))
            live.stepped()
            ending = await delivery.take(step)
            if ending is not None:
                return ending
