"""The answers of one session: one prompt, and for each answer places of its own at workers.

    answer 0        the session itself, from its open on
    its first token the prompt's KV is in the prefix cache of its prefill worker
    answers 1 ...   begin there, from the sealed prompt, at the same workers if possible

They end together: the session succeeds with the last one, and the failure of one ends all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from router.further_answer import FurtherAnswer
from router.kv_prefetch import KvPrefetch
from router.lazy_task import LazyTask
from router.live_session import LiveSession
from router.placed_prefill import PlacedPrefill
from router.session_output import SessionOutput
from router.splice import Splice
from stream2llm.api.handover import HandoverMode
from stream2llm.api.session import Event
from stream2llm.api.tasks import TaskGroup
from stream2llm.serving.sessions.prefix import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class PlacedAnswer:
    """One answer and its places at workers."""

    live: LiveSession
    prefill: PlacedPrefill
    prefetch: KvPrefetch
    output: SessionOutput

    async def run(self) -> None:
        """Returns when the answer has ended and its end is in the outbox."""
        drains = self.live.parts.workers.on_drain
        async with TaskGroup() as group:
            fetching = LazyTask(group, self.prefetch.run)
            leaving = LazyTask(group, self.prefill.leave_draining)
            self.prefetch.begin_by(fetching.begin)
            drains.add(leaving.begin)
            if self.prefill.worker.drain_by_s is not None:
                leaving.begin()
            try:
                await self.output.run()
            finally:
                drains.discard(leaving.begin)
            fetching.cancel()
            leaving.cancel()

    async def seal(self, prompt: Tokens) -> None:
        """Sends the whole sequence of an answer other than the session's first."""
        final = self.output.sealed(prompt)
        if final.has_ended:
            return
        tokens, live = final.tokens, self.live
        splice = Splice(0, tokens, len(tokens), is_empty=False)
        revision = live.progress.splice(0, 0, len(tokens))
        live.note_work()
        await self.prefill.seal(
            revision,
            splice,
            answer_max_tokens=final.max_tokens,
            answer_tokens=final.answer.num_tokens,
        )


@asynccontextmanager
async def placed(
    live: LiveSession,
    handover: HandoverMode,
    num_prompt_tokens: int,
    beside: PlacedAnswer | None = None,
) -> AsyncIterator[PlacedAnswer]:
    """Opens a place at a prefill worker; all places are left at the end.

    `num_prompt_tokens` are known of the prompt. `beside` is an answer at whose workers this one
    begins, if they can be used.
    """
    prefill = PlacedPrefill(live)
    await prefill.open(num_prompt_tokens, beside.prefill.worker if beside else None)
    prefetch = KvPrefetch(live, handover)
    prefill.on_lost = prefetch.prefill_lost
    try:
        output = SessionOutput(live, prefill, prefetch)
        if beside:
            output.begins_beside(beside.output)
        yield PlacedAnswer(live, prefill, prefetch, output)
    finally:
        prefetch.close()
        prefill.close()


async def run_answers(first: PlacedAnswer) -> None:
    """Returns when all answers of the session have ended and their ends are in the outbox."""
    if first.live.sampling.n == 1:
        await first.run()
        return
    async with TaskGroup() as group:
        group.create_task(_run_others(first))
        await first.run()


async def _run_others(first: PlacedAnswer) -> None:
    await first.output.begun.wait()
    async with TaskGroup() as group:
        for index in range(1, first.live.sampling.n):
            group.create_task(_run_further(first, index))


async def _run_further(first: PlacedAnswer, index: int) -> None:
    live = FurtherAnswer(first.live, index)
    end, outcome = Event.FAIL, "failed"
    try:
        prompt = first.output.prompt
        async with (
            placed(live, "at_seal", len(prompt), first) as answer,
            TaskGroup() as group,
        ):
            group.create_task(answer.seal(prompt))
            await answer.run()
        end, outcome = Event.FINISH, "ok"
    except asyncio.CancelledError:
        end, outcome = Event.CANCEL, "cancelled"
        raise
    finally:
        live.end(end, outcome)
