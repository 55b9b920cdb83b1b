"""What the driver asks of a system, whatever it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from experiments.token_sessions import TimedSplice
from stream2llm.api.errors import Stream2LLMError
from stream2llm.workload.replay.plan import PlannedSession


class SystemDiedError(Stream2LLMError):
    """A system is no more; the message ends with its log. The whole benchmark fails."""

    default_reason = "SYSTEM_DIED"


class Asking(Protocol):
    """One question at a system. Its methods are called one after the other."""

    async def change(self, change: TimedSplice) -> None:
        """Context has come, and more will. The first call opens the session."""

    def finish(self, last: TimedSplice) -> AsyncIterator[int]:
        """The last context and, with it, the question; numbers of new tokens as they come."""

    async def cancel(self) -> None:
        """The driver will not wait any longer, or is done; nothing is left at the system."""


class System(Protocol):
    """A system that has started."""

    @property
    def name(self) -> str:
        """As in `cells`."""

    def asks(self, planned: PlannedSession) -> Asking:
        """A question to ask."""

    async def begin_run(self) -> None:
        """Forgets what earlier runs left in caches."""

    async def end_run(self) -> Mapping[str, float]:
        """What was counted since `begin_run`; raises SystemDiedError if there is no system."""
