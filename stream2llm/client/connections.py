"""The connections of a client: one to each router, or to each name that stands for several."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from stream2llm.api.errors import Stream2LLMError
from stream2llm.client.connection import Connection
from stream2llm.client.recovery import is_loss
from stream2llm.client.routers import Routers

T = TypeVar("T")


class Connections:
    """At least one; `routers` says whose turn it is."""

    def __init__(self, connections: Sequence[Connection], first: int = 0) -> None:
        self._connections = connections
        self.routers = Routers(len(connections), first)

    def stub(self, router: int) -> Any:
        """Returns the service's stub of a router; raises RuntimeError where it cannot be used."""
        return self._connections[router].stub()

    async def close(self) -> None:
        """Closes all channels; may be called again."""
        for connection in self._connections:
            await connection.close()

    async def ask(self, call: Callable[[Any], Awaitable[T]]) -> T:
        """Returns the answer of the first router that gives one; each is asked once.

        `call` gets a stub, and raises Stream2LLMError.
        """
        for is_last in self._tries():
            router = self.routers.next(_now_s())
            try:
                answer = await call(self.stub(router))
            except Stream2LLMError as error:
                self._failed(router, error, is_final=is_last)
            else:
                self.routers.served(router)
                return answer
        raise AssertionError("the last failure is raised")

    def _tries(self) -> Sequence[bool]:
        """For each try whether it is the last one."""
        return [False] * (len(self.routers) - 1) + [True]

    def _failed(self, router: int, error: Stream2LLMError, *, is_final: bool) -> None:
        if is_loss(error):
            self.routers.failed(router, _now_s())
        if is_final or not is_loss(error):
            raise error


def _now_s() -> float:
    return asyncio.get_running_loop().time()
