"""The limit of an engine's present step, as EngineCore tells its front end: one float in memory.

A step blocks EngineCore's main loop, so no message can say how long it may take. The front
end creates the memory (a memfd, which ends with the process) and names it in the
environment; EngineCore's scheduler writes to it as each step begins and ends.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections import deque

from stream2llm.engine.step_history import NEW_SIZE_LIMIT_S, StepHistory
from stream2llm.serving.system.clock import Clock

_log = logging.getLogger(__name__)

# The path of the memory, for processes of the same user.
LIMIT_VARIABLE = "STREAM2LLM_STEP_LIMIT"
_NUM_BYTES = 8


class StepLimit:
    """One float in shared memory: seconds, 0 while no step runs."""

    def __init__(self, descriptor: int) -> None:
        self._memory = memoryview(mmap.mmap(descriptor, _NUM_BYTES)).cast("d")

    @classmethod
    def create(cls) -> tuple[StepLimit, str]:
        """Makes new memory; returns it and its path, which is valid while this process lives.

        Until an engine writes to it the limit is that of a step of which nothing is known.
        """
        descriptor = os.memfd_create("stream2llm-step-limit")
        os.ftruncate(descriptor, _NUM_BYTES)
        limit = cls(descriptor)
        limit.write(NEW_SIZE_LIMIT_S)
        return limit, f"/proc/{os.getpid()}/fd/{descriptor}"

    @classmethod
    def open(cls, path: str) -> StepLimit:
        """Opens another process's memory; raises OSError."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            return cls(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> float:
        """Returns the limit; one aligned float is read whole."""
        return self._memory[0]

    def write(self, limit_s: float) -> None:
        """Sets the limit."""
        self._memory[0] = limit_s


def limit_of_parent() -> StepLimit | None:
    """Opens the memory that the front end named, if it did; called in EngineCore."""
    path = os.environ.get(LIMIT_VARIABLE)
    if path is None:
        return None
    try:
        return StepLimit.open(path)
    except OSError as error:  # then the limit stays that of an unknown step
        _log.warning("no_step_limit path=%s error=%s", path, error)
        return None


class StepTimer:
    """Learns from steps, and writes the limit of those that run.

    With asynchronous scheduling a step begins before the one before has ended; they are
    executed one after the other.
    """

    def __init__(self, clock: Clock, limit: StepLimit | None) -> None:
        self._clock = clock
        self._limit = limit
        self._history = StepHistory()
        # For each step that runs when it began, and its number of tokens.
        self._running: deque[tuple[float, int]] = deque()
        self._ended_s = 0.0
        self._write()

    def begin(self, num_tokens: int) -> None:
        """A step has been scheduled."""
        self._running.append((self._clock.monotonic_s(), num_tokens))
        self._write()

    def end(self) -> None:
        """The oldest step has ended."""
        began_s, num_tokens = self._running.popleft()
        now_s = self._clock.monotonic_s()
        self._history.add(num_tokens, now_s - max(began_s, self._ended_s))
        self._ended_s = now_s
        self._write()

    def _write(self) -> None:
        if self._limit is not None:
            limits = (self._history.limit_s(num_tokens) for _, num_tokens in self._running)
            self._limit.write(max(limits, default=0.0))
