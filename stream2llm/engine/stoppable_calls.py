"""Calls of a function that can be stopped: each runs in a process of its own.

A thread in native code cannot be stopped. So a server process, started at the first call,
imports what the function needs and forks itself for each call; the fork ends by its own
timer, and the kernel ends it first when memory runs out. The server ends with the process
that started it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any

from stream2llm.api.errors import describe
from stream2llm.serving.system.clock import SystemClock

# What the server has to import takes seconds, and minutes on a busy machine.
_START_LIMIT_S = 300.0
_KILLED_FIRST = "1000"

Function = Callable[[Any], Any]


class CallFailedError(Exception):
    """The function raised, and this is its error as text; or its process died."""


class CallStoppedError(Exception):
    """The call took longer than it may."""


class NoProcessError(Exception):
    """There was no process for the call, for reasons of this machine or of ours."""


class StoppableCalls:
    """Calls one function, from any thread, several at once.

    `factory` ("module:function") is called once in the server, with `argument`; what it returns
    is the function. Arguments and results are pickled.
    """

    def __init__(self, factory: str, argument: Any) -> None:
        self._factory = factory
        self._argument = argument
        self._clock = SystemClock()
        self._lock = Lock()
        self._server: _Server | None = None

    def call(self, argument: Any, limit_s: float) -> Any:
        """Returns what the function returns.

        Raises CallStoppedError after `limit_s` seconds, CallFailedError where the function raises
        or its process dies, and NoProcessError.
        """
        try:
            with self._lock:
                process = self._begin()
        except OSError as error:
            raise NoProcessError(describe(error)) from error
        with process:
            return self._answer(process, argument, limit_s)

    def _answer(self, process: Connection, argument: Any, limit_s: float) -> Any:
        try:
            if not process.poll(_START_LIMIT_S):
                raise NoProcessError(f"none within {_START_LIMIT_S:g} s")
            process.recv()
            began_s = self._clock.monotonic_s()
            process.send((argument, limit_s))
        except (EOFError, OSError) as error:
            raise NoProcessError("it ended before the call") from error
        try:
            has_succeeded, value = process.recv()
        except (EOFError, OSError) as error:
            if self._clock.monotonic_s() - began_s >= limit_s:
                raise CallStoppedError(f"it takes longer than {limit_s:g} s") from error
            raise CallFailedError("its process died") from error
        if not has_succeeded:
            raise CallFailedError(value)
        return value

    def _begin(self) -> Connection:
        if self._server is None or not self._server.lives:
            self.close()
            self._server = _Server(self._factory, self._argument)
        return self._server.begin()

    def close(self) -> None:
        """Ends the server; calls under way end by themselves."""
        if self._server is not None:
            self._server.close()
            self._server = None


class _Server:
    """The caller's end of a server process."""

    def __init__(self, factory: str, argument: Any) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        with Connection(os.dup(self._control.fileno())) as control:
            control.send((factory, argument))

    @property
    def lives(self) -> bool:
        """Whether the server process still runs."""
        return self._process.poll() is None

    def begin(self) -> Connection:
        """Returns the connection to the process of a new call."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"\0"], [theirs.fileno()])
        return Connection(ours.detach())

    def close(self) -> None:
        """Ends it."""
        self._control.close()
        self._process.wait()


def _serve(control: socket.socket) -> None:
    """Forks for each call, until the caller is gone."""
    with Connection(os.dup(control.fileno())) as caller:
        factory, argument = caller.recv()
    module, _, name = factory.partition(":")
    function: Function = getattr(import_module(module), name)(argument)
    while True:
        message, descriptors, *_ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _call(Connection(descriptors[0]), function)
            os._exit(0)
        os.close(descriptors[0])


def _call(caller: Connection, function: Function) -> None:
    """Calls the function once, in a fork of the server."""
    try:
        caller.send(os.getpid())
        argument, limit_s = caller.recv()
        signal.setitimer(signal.ITIMER_REAL, limit_s)  # its signal ends the process
        try:
            answer = True, function(argument)
        except Exception as error:
            answer = False, describe(error)
        caller.send(answer)
    except (EOFError, OSError):
        return  # the caller is gone


def _main() -> None:
    Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its caller
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the forks
    _serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    _main()
