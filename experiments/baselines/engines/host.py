"""The process around one engine: `python -m experiments.baselines.engines.host FD SPEC`.

Everything it starts inherits its cores. It ends its engine and itself when the
driver closes the socket, or is killed: nothing outlives a run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from typing import Any, Protocol

import psutil

from experiments.baselines.engines.messages import (
    Ask,
    Command,
    End,
    Failed,
    Feed,
    FromHost,
    HostSpec,
    Ready,
    Reply,
    Send,
    Splice,
    ToHost,
    read,
    write,
)

ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class HostedEngine(Protocol):
    """An engine behind the socket. What its methods raise is sent to the driver."""

    def settings(self) -> dict[str, str | float]:
        """What the engine turned out to be."""

    async def ask(self, message: Ask) -> None:
        """Returns at the end of the answer."""

    async def feed(self, message: Feed) -> None:
        """Returns when the part is sent, the first time at the end of the answer."""

    async def splice(self, message: Splice) -> None:
        """Likewise."""

    async def end(self, request_id: str) -> None:
        """Frees what a request holds."""

    async def reset(self) -> None:
        """Empties the prefix cache; raises RuntimeError while blocks are held."""

    async def set_policy(self, policy: str) -> None:
        """From the next step on."""

    def counters(self) -> dict[str, float]:
        """Since the start."""

    async def wait_dead(self) -> str:
        """Returns why, when the engine has died."""

    async def shutdown(self) -> None:
        """Ends the engine's processes."""


async def start(spec: HostSpec, send: Send) -> HostedEngine:
    """The engine that the spec asks for."""
    if spec.kind == "stock":
        from experiments.baselines.engines.stock import StockEngine

        return await StockEngine.start(spec, send)
    from experiments.baselines.engines.ours import OurEngine

    return await OurEngine.start(spec, send)


class Host:
    """Takes messages until the socket closes."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._engine: HostedEngine
        # Answers under way, by request. Events of one request must keep their order.
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, message: FromHost) -> None:
        """To the driver."""
        write(self._writer, message)

    async def serve(self, spec: HostSpec, reader: asyncio.StreamReader) -> str:
        """Until the driver is gone (""), or the engine has died (why)."""
        self._engine = await start(spec, self.send)
        self.send(Ready(self._engine.settings()))
        reading = asyncio.create_task(self._read(reader))
        dying = asyncio.create_task(self._engine.wait_dead())
        await asyncio.wait({reading, dying}, return_when=asyncio.FIRST_COMPLETED)
        reason = dying.result() or "the engine died" if dying.done() else ""
        for task in (reading, dying, *self._tasks):
            task.cancel()
        await self._engine.shutdown()
        return reason

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while (message := await read(reader, ToHost)) is not None:
            # A task runs in the order in which tasks are made, up to its first wait;
            # the engines keep the order of a request's events behind that.
            task = asyncio.create_task(self._carry_out(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, message: Any) -> None:
        try:
            await self._dispatch(message)
        except Exception as error:  # of one request or command; the driver decides
            text = f"{type(error).__name__}: {error}"
            if isinstance(message, Command):
                self.send(Reply(message.number, {}, text))
            elif not isinstance(message, End):
                self.send(Failed(message.request_id, text))

    async def _dispatch(self, message: Any) -> None:
        if isinstance(message, Ask):
            await self._engine.ask(message)
        elif isinstance(message, Feed):
            await self._engine.feed(message)
        elif isinstance(message, Splice):
            await self._engine.splice(message)
        elif isinstance(message, End):
            await self._engine.end(message.request_id)
        else:
            self.send(Reply(message.number, await self._command(message)))

    async def _command(self, command: Command) -> dict[str, float]:
        if command.name == "reset":
            await self._engine.reset()
        elif command.name == "policy":
            await self._engine.set_policy(command.argument)
        return {**self._engine.counters(), "cpu_s": cpu_s()}


def cpu_s() -> float:
    """Seconds of CPU of this process and all it started."""
    me = psutil.Process()
    times = [each.cpu_times() for each in (me, *me.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


async def main(descriptor: int, spec: HostSpec) -> int:
    """Returns the exit code."""
    connection = socket.socket(fileno=descriptor)
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**26)
    reason = await Host(writer).serve(spec, reader)
    if reason:
        print(f"host: {reason}", file=sys.stderr, flush=True)
    return 1 if reason else 0


def run() -> None:
    # Ctrl-C reaches the driver alone, which then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = HostSpec(**json.loads(sys.argv[2]))
    os.sched_setaffinity(0, set(spec.cores))
    os.environ.update(ENVIRONMENT)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, spec.cores))
    sys.exit(asyncio.run(main(int(sys.argv[1]), spec)))


if __name__ == "__main__":
    run()
