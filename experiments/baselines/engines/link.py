"""The driver's end of an engine: starts the host process, sends, receives, ends it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from experiments.baselines.engines.messages import (
    Command,
    End,
    Failed,
    FromHost,
    HostSpec,
    Ready,
    Reply,
    ToHost,
    Tokens,
    read,
    write,
)
from experiments.baselines.engines.process import HostProcess
from experiments.baselines.systems import SystemDiedError
from stream2llm.api.errors import Stream2LLMError

START_TIMEOUT_S = 300.0
COMMAND_TIMEOUT_S = 60.0


class RequestFailedError(Stream2LLMError):
    """One request has no whole answer; the engine lives."""

    default_reason = "REQUEST_FAILED"


class EngineLink:
    """One engine. Build it with `start`, end it with `stop`."""

    def __init__(self, process: HostProcess) -> None:
        self._process = process
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._receiving: asyncio.Task[None]
        self.settings: Mapping[str, str | float] = {}
        self._answers: dict[str, asyncio.Queue[Tokens | Failed]] = {}
        self._replies: dict[int, asyncio.Future[Reply]] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls, spec: HostSpec, log: Path) -> EngineLink:
        """Returns when the engine is ready; raises SystemDiedError with its log otherwise."""
        ours, theirs = socket.socketpair()
        with theirs:
            module, argument = "experiments.baselines.engines.host", json.dumps(asdict(spec))
            link = cls(HostProcess(module, theirs, argument, log))
        link._reader, link._writer = await asyncio.open_connection(sock=ours)
        link._receiving = asyncio.create_task(link._receive())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await link._ready
        except BaseException:
            await link.stop()
            raise
        return link

    @property
    def pid(self) -> int:
        """Process id of the host, which started all others."""
        return self._process.pid

    # -- requests ------------------------------------------------------------------

    def send(self, message: ToHost) -> None:
        """Raises SystemDiedError when the host process has ended."""
        if self._receiving.done():
            raise self.died()
        write(self._writer, message)

    def expect(self, request_id: str) -> None:
        """Answers of this request are wanted; to be called before it is sent."""
        self._answers[request_id] = asyncio.Queue()

    async def answer(self, request_id: str) -> AsyncIterator[int]:
        """Numbers of new tokens, to the end; raises RequestFailedError."""
        async for message in self._tokens(request_id):
            if message.count:
                yield message.count

    async def transfer(self, request_id: str) -> dict[str, Any]:
        """vLLM's transfer parameters at the end of an answer; raises RequestFailedError."""
        found: dict[str, Any] | None = None
        async for message in self._tokens(request_id):
            found = message.transfer
        if not found:
            raise RequestFailedError("the engine hands no KV over")
        return found

    async def _tokens(self, request_id: str) -> AsyncIterator[Tokens]:
        queue = self._answers[request_id]
        while True:
            message = await queue.get()
            if isinstance(message, Failed):
                if self._receiving.done():
                    raise self.died()
                raise RequestFailedError(message.error)
            yield message
            if message.finished:
                return

    def end(self, request_id: str) -> None:
        """Drops a request whose answer is no longer wanted."""
        self._answers.pop(request_id, None)
        if not self._receiving.done():
            self.send(End(request_id))

    async def command(
        self, name: Literal["reset", "counters", "policy"], argument: str = ""
    ) -> dict[str, float]:
        """The engine's counters after a command.

        Raises SystemDiedError if it failed: an engine that cannot be emptied, switched or
        asked is of no use to the next run.
        """
        number = len(self._replies) + 1
        self._replies[number] = asyncio.get_running_loop().create_future()
        self.send(Command(number, name, argument))
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            reply = await self._replies[number]
        if reply.error:
            raise SystemDiedError(self._process.epitaph(f"{name}: {reply.error}"))
        return reply.value

    # -- receiving -----------------------------------------------------------------

    async def _receive(self) -> None:
        while (message := await read(self._reader, FromHost)) is not None:
            if isinstance(message, Tokens | Failed):
                if (queue := self._answers.get(message.request_id)) is not None:
                    queue.put_nowait(message)
            elif isinstance(message, Reply):
                self._replies[message.number].set_result(message)
            elif isinstance(message, Ready):
                self.settings = message.settings
                self._ready.set_result(None)
        self._lost()

    def _lost(self) -> None:
        """Fails all answers and replies that are waited for."""
        for request_id, queue in self._answers.items():
            queue.put_nowait(Failed(request_id, "the engine's process is gone"))
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._replies.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(self.died())
                future.exception()  # it may have no reader

    def died(self) -> SystemDiedError:
        """With the end of the log."""
        return SystemDiedError(self._process.epitaph("an engine's process ended"))

    async def stop(self) -> None:
        """Ends the engine and every process of it; may be called again."""
        self._writer.close()
        await self._process.end()
        self._receiving.cancel()
        await asyncio.gather(self._receiving, return_exceptions=True)
