"""The driver's end of an engine: starts the host process, sends, receives, ends it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
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
from experiments.baselines.systems import SystemDiedError
from stream2llm.api.errors import Stream2LLMError

START_TIMEOUT_S = 300.0
COMMAND_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
_LOG_TAIL_BYTES = 4000


class RequestFailedError(Stream2LLMError):
    """One request has no whole answer; the engine lives."""

    default_reason = "REQUEST_FAILED"


class EngineLink:
    """One engine. Build it with `start`, end it with `stop`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
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
            process = _start_process(spec, theirs, log)
        link = cls(process, log)
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
        queue = self._answers[request_id]
        while True:
            message = await queue.get()
            if isinstance(message, Failed):
                if self._receiving.done():
                    raise self.died()
                raise RequestFailedError(message.error)
            if message.count:
                yield message.count
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
            raise SystemDiedError(f"{name}: {reply.error}; {self._log} ends with:\n{self._tail()}")
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
        return SystemDiedError(f"an engine's process ended; {self._log} ends with:\n{self._tail()}")

    def _tail(self) -> str:
        with suppress(OSError):
            return self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        return "(no log)"

    async def stop(self) -> None:
        """Ends the engine and every process of it; may be called again."""
        self._writer.close()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        self._receiving.cancel()
        await asyncio.gather(self._receiving, return_exceptions=True)


def _start_process(spec: HostSpec, connection: socket.socket, log: Path) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C shall reach the driver alone, and whatever the engine
    starts can be ended as one group."""
    descriptor = connection.fileno()
    command = (sys.executable, "-m", "experiments.baselines.engines.host", str(descriptor))
    with log.open("wb") as output:
        return subprocess.Popen(
            [*command, json.dumps(asdict(spec))],
            pass_fds=(descriptor,),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
