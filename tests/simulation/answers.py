"""KV memory of a model decode worker's answers, as an engine gives it out.

First come, first served; when a running answer finds no block, the last that began loses
all of its own, and waits at the front for room for its whole sequence.
"""

from __future__ import annotations

import asyncio

from tests.simulation.kv import num_blocks


class AnswerMemory:
    """The blocks of one engine."""

    def __init__(self, num_blocks: int) -> None:
        self.num_free = num_blocks
        self.num_preempted = 0
        # Blocks of running answers, the latest at the end.
        self._held: dict[object, int] = {}
        self._waiting: list[object] = []
        self._changed = asyncio.Event()

    async def hold(self, answer: object, num_tokens: int) -> None:
        """Returns when the answer has blocks for so many tokens."""
        if answer not in self._held and answer not in self._waiting:
            self._waiting.append(answer)
        while not self._has_got(answer, num_blocks(num_tokens)):
            await self._changed.wait()

    def leave(self, answer: object) -> None:
        """The answer has ended."""
        self.num_free += self._held.pop(answer, 0)
        if answer in self._waiting:
            self._waiting.remove(answer)
        self._notify()

    def _has_got(self, answer: object, needed: int) -> bool:
        while answer in self._held and needed - self._held[answer] > self.num_free:
            self._preempt(next(reversed(self._held)))
        if answer not in self._held:
            if self._waiting[0] is not answer or needed > self.num_free:
                return False
            self._waiting.remove(answer)
        self.num_free -= needed - self._held.get(answer, 0)
        self._held[answer] = needed
        self._notify()
        return True

    def _preempt(self, victim: object) -> None:
        self.num_preempted += 1
        self.num_free += self._held.pop(victim)
        self._waiting.insert(0, victim)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
