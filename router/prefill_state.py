"""A session's state at its prefill worker, as another worker has to be sent it."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.splice import Splice
from router.worker_calls import PrefillCall
from stream2llm.serving.sessions.prefix import Tokens, as_tokens


@dataclass(frozen=True, slots=True, eq=False)
class PrefillState:
    """The sequence, open or sealed; the default is that of a session that was only opened."""

    # 0: nothing but the open.
    revision: int = 0
    sequence: Tokens = field(default_factory=lambda: as_tokens([]))
    stable_tokens: int = 0
    is_sealed: bool = False
    # Maximum tokens of the whole answer; known with the seal.
    answer_max_tokens: int = 0
    # The last tokens of the sequence that are the answer's.
    answer_tokens: int = 0

    @property
    def is_resumed(self) -> bool:
        """Whether the sequence ends in an answer that needs more than the next token."""
        return self.answer_tokens > 0 and self.answer_max_tokens - self.answer_tokens > 1

    async def send(self, call: PrefillCall, splice: Splice, ttft_left_ms: int) -> None:
        """Sends the splice that leads to this state; `ttft_left_ms` as in PrefillCall.seal."""
        if not self.is_sealed:
            await call.splice(self.revision, splice, stable_tokens=self.stable_tokens)
            return
        await call.seal(
            self.revision,
            splice,
            answer_max_tokens=self.answer_max_tokens,
            stable_tokens=self.stable_tokens,
            ttft_left_ms=ttft_left_ms,
            answer_tokens=self.answer_tokens,
        )

    async def send_all(self, call: PrefillCall, ttft_left_ms: int) -> None:
        """Sends all of it to a worker that has only the open."""
        if self.revision or self.is_sealed:
            everything = Splice(0, self.sequence, len(self.sequence), is_empty=False)
            await self.send(call, everything, ttft_left_ms)
