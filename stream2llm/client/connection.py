"""The channel behind a client, and checks where it may be used.

A grpc.aio channel belongs to the event loop in which it is created and to the process
whose threads drive it. So it is created on first use, in the running loop; a call from
another loop, or in a forked process, would wait for ever or crash, and is refused.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

from stream2llm.api.call_metadata import CallsWith, Metadata
from stream2llm.api.v1.inference_pb2_grpc import StreamingInferenceServiceStub

_AFTER_FORK = (
    "this process was forked from one in which gRPC was running, and gRPC does not survive "
    'that: start it with multiprocessing.get_context("spawn")'
)


class Connection:
    """Creates its channel at the first call; `make_channel` runs inside the event loop."""

    def __init__(
        self, make_channel: Callable[[], Any], metadata: Callable[[], Metadata] = lambda: ()
    ) -> None:
        """`metadata` goes with every call."""
        self._make_channel = make_channel
        self._metadata = metadata
        self._channel: Any = None
        self._stub: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._num_calls = 0
        # Closes it, once it is retired and its last call has ended.
        self._on_unused: Callable[[], object] | None = None

    def stub(self) -> Any:
        """Returns the service's stub; raises RuntimeError where it cannot be used."""
        refuse_after_fork()
        if self._closed:
            raise RuntimeError("the client is closed")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._channel = self._make_channel()
            self._stub = StreamingInferenceServiceStub(
                CallsWith(self._channel, self._metadata, self._began)
            )
            self._loop = loop
            _live.add(self)
        elif self._loop is not loop:
            raise RuntimeError(_other_loop(self._loop))
        return self._stub

    def retire(self, on_unused: Callable[[], object]) -> None:
        """No call begins any more; `on_unused` is called when the last one has ended."""
        self._on_unused = on_unused
        self._tell_if_unused()

    def _began(self, call: Any) -> None:
        self._num_calls += 1
        call.add_done_callback(self._ended)

    def _ended(self, _call: Any) -> None:
        self._num_calls -= 1
        self._tell_if_unused()

    def _tell_if_unused(self) -> None:
        if self._on_unused is not None and not self._num_calls:
            self._on_unused()

    async def close(self) -> None:
        """Closes the channel, and ends calls under way; may be called again."""
        self._closed = True
        channel, self._channel, self._stub = self._channel, None, None
        if channel is None or _is_forked:
            return
        _live.discard(self)
        if self._loop is asyncio.get_running_loop():
            await channel.close()
        # In another loop it cannot be awaited: the channel closes when it is collected.


def refuse_after_fork() -> None:
    """Raises RuntimeError in a process that was forked from one in which gRPC ran."""
    if _is_forked:
        raise RuntimeError(_AFTER_FORK)


def _other_loop(first: asyncio.AbstractEventLoop) -> str:
    ended = ", which has ended" if first.is_closed() else ""
    return (
        f"the client belongs to the event loop of its first call{ended}: "
        "make one client for each event loop"
    )


_live: WeakSet[Connection] = WeakSet()
_grpc_runs = False  # in this process, at the time of a fork
_is_forked = False  # from a process in which gRPC was running

# grpc.aio's own thread, which runs as long as anything refers to a channel, a call or a
# server, even after the client is closed.
_POLLER = "_poll_wrapper"
# Those of its core, which end a moment after the last channel. A child that is forked before
# that has locks that they hold, and waits for ever.
_CORE_THREADS = frozenset({"event_engine", "grpc_global_tim", "lifeguard", "timer_manager"})
_TASKS = Path("/proc/self/task")  # Linux


def grpc_runs() -> bool:
    """Whether gRPC has threads in this process."""
    is_polling = any(_POLLER in thread.name for thread in threading.enumerate())
    return is_polling or any(name in _CORE_THREADS for name in _native_threads())


def _native_threads() -> Iterator[str]:
    for comm in _TASKS.glob("*/comm"):
        with suppress(OSError):  # it has just ended
            yield comm.read_text().strip()


def _before_fork() -> None:
    global _grpc_runs
    _grpc_runs = bool(_live) or grpc_runs()


def _in_child() -> None:
    global _is_forked
    _is_forked = _is_forked or _grpc_runs


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
