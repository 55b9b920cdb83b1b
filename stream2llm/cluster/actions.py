"""The supervisor's actions under way."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from stream2llm.api.tasks import TaskGroup

_log = logging.getLogger(__name__)


class Actions:
    """One task for each action, while the context lasts; all are cancelled at its end."""

    def __init__(self) -> None:
        self._group = TaskGroup()
        # Whether the context lasts, so that actions can begin.
        self.is_open = False

    def spawn(self, action: Coroutine[Any, Any, None]) -> None:
        """Runs an action; if it raises, that is logged and the others go on."""

        async def guarded() -> None:
            try:
                await action
            except Exception:  # supervision must outlive a bug in one action
                _log.exception("controller_action_failed")

        task = self._group.create_task(guarded())
        task.add_done_callback(lambda _: action.close())  # cancelled before its first step

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self.is_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.is_open = False
        await self._group.__aexit__(kind, error, trace)
