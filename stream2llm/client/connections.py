"""The connections of a client: one to each router, or to each name that stands for several.

They may change while the client lives: a session whose router is lost asks those that there are
then, and one that is under way at a router that is gone from the list stays there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, TypeVar

from stream2llm.api.errors import Stream2LLMError
from stream2llm.client.connection import Connection
from stream2llm.client.recovery import is_loss
from stream2llm.client.routers import Routers

T = TypeVar("T")


class Connections:
    """At least one; `routers` says whose turn it is."""

    def __init__(
        self, targets: Sequence[str], connect: Callable[[str], Connection], first: int = 0
    ) -> None:
        """`connect` makes the connection to a target."""
        self._connect = connect
        self._numbers = count()
        # By the router's number, which no other one gets later.
        self._targets = {next(self._numbers): target for target in targets}
        self._connections = {n: connect(target) for n, target in self._targets.items()}
        # Those of former routers, until their last call ends.
        self._retired: set[Connection] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self.routers = Routers(len(self._targets), first)

    def stub(self, router: int) -> Any:
        """Returns the service's stub of a router; raises RuntimeError where it cannot be used."""
        return self._connections[router].stub()

    def become(self, targets: Sequence[str]) -> None:
        """These are the routers from now on, at least one; calls under way go on."""
        new = {each: self._connect(each) for each in targets if each not in self._targets.values()}
        for number, target in list(self._targets.items()):
            if target not in targets:
                del self._targets[number]
                self._retire(self._connections.pop(number))
        for target, connection in new.items():
            number = next(self._numbers)
            self._targets[number], self._connections[number] = target, connection
        self.routers.become(self._targets)

    def _retire(self, connection: Connection) -> None:
        self._retired.add(connection)
        connection.retire(lambda: self._close_soon(connection))

    def _close_soon(self, connection: Connection) -> None:
        if connection not in self._retired:  # `close` closes it
            return
        self._retired.remove(connection)
        closing = asyncio.get_running_loop().create_task(connection.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes all channels; may be called again."""
        retired, self._retired = self._retired, set()
        for connection in (*self._connections.values(), *retired):
            await connection.close()
        await asyncio.gather(*self._closing)

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
