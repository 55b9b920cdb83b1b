"""An event loop on virtual time: nothing waits, and a seed decides what is not determined.

Production code runs on it unchanged, as long as it takes time and delays from the loop.
Callbacks run in the order in which they were scheduled, as asyncio promises; timers that
are due at one instant run in any order, because messages that arrive together do.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.process import Process

# Whose code is running; None: the world's.
PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
# Timers that are closer together than this are due at one instant.
_INSTANT_S = 1e-6
_WALL_S = 1_700_000_000.0


class StuckError(Exception):
    """Something is waited for that can never come."""


class VirtualTask(asyncio.Task[Any]):
    """A task whose place in a set depends on nothing but the order of creation."""

    def __init__(self, coro: Coroutine[Any, Any, Any], number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.BaseEventLoop):
    """Jumps to the next timer when nothing else is left to do."""

    _ready: Any
    # Tuples, because they are compared faster than handles.
    _scheduled: list[Any]

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._now_s = 0.0
        self._random = random
        self._num_tasks = self._num_timers = 0
        self.num_steps = 0
        # Called before a step, once `num_steps` has reached the number.
        self._at_steps: list[tuple[int, int, Callable[[], None]]] = []
        self.set_task_factory(self._new_task)

    def time(self) -> float:
        return self._now_s

    # The next two leave out the base class's checks, which are half of a step.

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        when += self._random.random() * _INSTANT_S / 2
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._num_timers += 1
        heapq.heappush(self._scheduled, (when, self._num_timers, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is left out when its time has come."""

    def forget_steps(self) -> None:
        """Nothing more is called back between steps."""
        self._at_steps.clear()

    def at_step(self, num_steps: int, callback: Callable[[], None]) -> None:
        """Calls back between two steps: at any await of any task."""
        heapq.heappush(self._at_steps, (num_steps, len(self._at_steps), callback))

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Runs it at once; its result comes a moment later."""
        future = self.create_future()
        try:
            settle, outcome = future.set_result, func(*args)
        except Exception as error:
            settle, outcome = future.set_exception, error
        self.call_later(self._random.random() / 1000, lambda: future.done() or settle(outcome))
        return future

    # -- asyncio's insides -----------------------------------------------------------

    def _new_task(
        self, loop: asyncio.AbstractEventLoop, coro: Any, context: Context | None = None
    ) -> VirtualTask:
        self._num_tasks += 1
        task = VirtualTask(coro, self._num_tasks, loop=loop, context=context)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.tasks.add(task)
            task.add_done_callback(process.tasks.discard)
        return task

    def _run_once(self) -> None:
        if not self._ready:
            self._advance()
        until_s = self._now_s + _INSTANT_S
        while self._scheduled and self._scheduled[0][0] <= until_s:
            self._ready.append(heapq.heappop(self._scheduled)[2])
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None and process.is_frozen:
                process.parked.append(handle)
                continue
            self.num_steps += 1
            while self._at_steps and self._at_steps[0][0] <= self.num_steps:
                heapq.heappop(self._at_steps)[2]()
            handle._run()

    def resume(self, handles: list[Any]) -> None:
        """Goes on with what a frozen process would have done."""
        self._ready.extend(handles)

    def _advance(self) -> None:
        while self._scheduled and self._scheduled[0][2]._cancelled:
            heapq.heappop(self._scheduled)
        if not self._scheduled:
            raise StuckError("nothing can happen any more")
        self._now_s = max(self._now_s, self._scheduled[0][0])

    def _write_to_self(self) -> None:
        """There is no selector to wake."""


class VirtualClock:
    """The loop's time, as `Clock` has it."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def monotonic_s(self) -> float:
        return self._loop.time()

    def wall_s(self) -> float:
        return _WALL_S + self._loop.time()
