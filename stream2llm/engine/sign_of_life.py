"""Finds out that an engine hangs: its main loop answers nothing for longer than a step may take.

EngineCore's main loop answers a question between two steps, at once when it is idle. So the
answer stays away when EngineCore or a rank of it is stopped or stuck, when a step never
ends, and when its messages do not arrive. How long is too long depends on its steps
(`step_history`) and is at least the operator's setting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from stream2llm.serving.actor.loss import Cause, Loss
from stream2llm.serving.system.clock import Clock
from stream2llm.serving.system.silence import LOOK_EVERY_S, Silence, is_answered

# Between an answer and the next question.
_PAUSE_S = 1.0


class SignOfLife:
    """Asks one engine again and again."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[object]],
        step_limit_s: Callable[[], float],
        least_limit_s: float,
        clock: Clock,
        pause_s: float = _PAUSE_S,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        """`ask` returns once the engine has answered, and raises when it is dead.

        `step_limit_s` returns how long the present step may take; 0 between two steps.
        """
        self._ask = ask
        self._step_limit_s = step_limit_s
        self._least_limit_s = least_limit_s
        self._clock = clock
        self._pause_s = pause_s
        self._look_every_s = look_every_s
        self._silence = self._new_silence()

    @property
    def silent_s(self) -> float:
        """Seconds that a question has waited for its answer; 0 while none waits."""
        return self._silence.silent_s

    @property
    def limit_s(self) -> float:
        """Seconds that it may wait."""
        return max(self._silence.limit_s, self._step_limit_s())

    async def until_hung(self) -> Loss:
        """Returns why once the engine hangs; raises what `ask` raises."""
        while await self._is_alive():
            self._silence = self._new_silence()
            await asyncio.sleep(self._pause_s)
        return Loss(
            Cause.HUNG,
            f"the engine has ended no step for {self.silent_s:.1f} s; by the steps before, and"
            f" hung_after_s ({self._least_limit_s:g} s), it may take {self._silence.limit_s:.1f} s",
        )

    async def _is_alive(self) -> bool:
        question = asyncio.ensure_future(self._ask())
        try:
            now_s = self._clock.monotonic_s
            if not await is_answered(question, self._silence, now_s, self._step_limit_s):
                return False
            question.result()
        finally:
            question.cancel()
        return True

    def _new_silence(self) -> Silence:
        return Silence(self._least_limit_s, self._look_every_s)
