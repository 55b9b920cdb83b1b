"""What a client gets of its answer: the text and tokens of each step, then the end.

Counts each step once, in the session's figures and in the metrics.
"""

from __future__ import annotations

from dataclasses import replace

from router.live_session import LiveSession
from router.sealed_answer import SealedAnswer, sealed_answer
from stream2llm.api.events import Finished, TokenDelta, Usage
from stream2llm.api.token_step import TokenStep
from stream2llm.api.v1 import worker_pb2 as pb
from stream2llm.serving.sessions.prefix import Tokens


class AnswerDelivery:
    """Delivers one answer to the session's outbox."""

    def __init__(self, live: LiveSession) -> None:
        self._live = live
        self._sealed: SealedAnswer | None = None
        self._uncomputed_at_seal_tokens = 0
        # Prompt tokens that the decode worker had before the hand-over.
        self.num_prefetched_tokens = 0
        # How the answer has ended, from its last token on.
        self.ending: Finished | None = None

    def begin(self, prompt: Tokens) -> SealedAnswer:
        """Takes the sealed prompt; returns the answer, which may have ended already."""
        self._sealed = sealed_answer(self._live, prompt)
        return self._sealed

    @property
    def sealed(self) -> SealedAnswer:
        """The answer, from `begin` on."""
        assert self._sealed is not None, "the life cycle allows no token before the seal"
        return self._sealed

    def note_first_token(self, first: pb.FirstToken) -> None:
        """Counts the first token that prefill samples here."""
        timings = self._live.note_first_token()
        self._uncomputed_at_seal_tokens = first.uncomputed_at_seal_tokens
        if self._live.index or self.sealed.answer.num_tokens:  # or it came from another router
            return
        self._live.parts.metrics.first_token(
            self._live.mode,
            timings.ttft_from_open_s,
            timings.ttft_from_seal_s,
            max(1 - first.uncomputed_at_seal_tokens / len(self.sealed.prompt), 0.0),
        )

    def note_step(self, *, is_after_handover: bool) -> float:
        """Counts a step behind the first token; returns the seconds since the one before."""
        since_last_s = self._live.timeline.decode_step()
        self._live.parts.metrics.decode_step(since_last_s, is_first=is_after_handover)
        return since_last_s

    async def take(self, step: TokenStep) -> Finished | None:
        """Puts the text and tokens of a step into the outbox; returns the end, if it has come."""
        taken = self.sealed.answer.take(step)
        self._live.next_token(self.sealed.answer.num_tokens)
        self._live.parts.metrics.output(len(taken.delta.token_ids))
        self.ending = taken.ending
        await self.put(taken.delta)
        return taken.ending

    async def put(self, delta: TokenDelta) -> None:
        """Puts text and tokens into the outbox, if there are any."""
        if delta.text or delta.token_ids:
            index = self._live.index
            await self._live.outbox.put(replace(delta, index=index) if index else delta)

    async def finish(self, ending: Finished) -> None:
        """Puts the end into the outbox, with the answer's figures; one answer has the prompt's."""
        usage = Usage(
            prompt_tokens=0 if self._live.index else len(self.sealed.prompt),
            completion_tokens=self.sealed.answer.num_tokens,
            uncomputed_at_seal_tokens=self._uncomputed_at_seal_tokens,
            prefetched_tokens=self.num_prefetched_tokens,
            **self._live.progress.used(),
        )
        finished = replace(
            ending,
            usage=usage,
            timings=self._live.timeline.timings(),
            document_order=self._live.document_order,
            restarts=self._live.progress.restarts,
            index=self._live.index,
        )
        self._live.finished(finished)
        await self._live.outbox.put(finished)
