"""A model of one worker's engine: steps take time, may hang, may end with the process."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from stream2llm.api.errors import UnavailableError
from tests.fake_workers import Brain
from tests.simulation.kv import Fabric, KvMemory
from tests.simulation.process import Process

# The bound after which an actor takes its engine for hung.
HUNG_AFTER_S = 10.0


class Engine:
    """Computes steps for all sessions of a worker."""

    def __init__(
        self,
        memory: KvMemory,
        fabric: Fabric,
        brain: Brain,
        random: Random,
        step_s: float,
        chunk_tokens: int,
    ) -> None:
        """`step_s` is the longest time of a step, which computes so many tokens of a session."""
        self.memory = memory
        self.fabric = fabric
        self.brain = brain
        self.chunk_tokens = chunk_tokens
        self._random = random
        self._step_s = step_s
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._died = asyncio.Event()
        self._reason = ""
        # How much longer than usual a step takes.
        self.slowness = 1.0
        # Tokens that it has computed, by session.
        self.computed: Counter[str] = Counter()

    @property
    def process(self) -> Process:
        return self.memory.process

    def hang(self) -> None:
        """SIGSTOP of its main loop; its actor notices, and kills it."""
        self.memory.is_hung = True
        self._goes_on.clear()
        self.process.call(self.die, "hung", delay_s=HUNG_AFTER_S)

    def die(self, reason: str) -> None:
        """Its processes have ended, and with them all KV."""
        if not self.memory.is_dead:
            self.memory.is_dead = True
            self.memory.kept.clear()
            self._reason = reason
            self._died.set()
            self._goes_on.set()

    @property
    def is_dead(self) -> bool:
        return self.memory.is_dead

    async def wait_dead(self) -> str:
        """Returns the reason once it is dead."""
        await self._died.wait()
        return self._reason

    async def step(self) -> None:
        """Returns after one step; raises when the engine is dead."""
        await asyncio.sleep(self._step_s * self.slowness * self._random.random())
        await self._goes_on.wait()
        self.require_alive()

    def require_alive(self) -> None:
        """Raises UnavailableError when it is dead."""
        if self.is_dead:
            raise UnavailableError("the worker's engine died", reason="WORKER_LOST")
