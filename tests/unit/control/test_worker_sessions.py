"""Sessions of a worker that drains, and SIGTERM at its process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stream2llm.api.errors import UnavailableError
from stream2llm.engine.worker_sessions import WorkerSessions


async def serve(sessions: WorkerSessions, begun: asyncio.Event, may_end: asyncio.Event) -> str:
    with sessions.one():
        begun.set()
        await may_end.wait()
    return "ended by itself"


async def a_session(sessions: WorkerSessions) -> tuple[asyncio.Task[str], asyncio.Event]:
    begun, may_end = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(serve(sessions, begun, may_end))
    await begun.wait()
    return task, may_end


async def test_a_drain_lets_sessions_end_and_refuses_new_ones() -> None:
    sessions = WorkerSessions()
    task, may_end = await a_session(sessions)
    draining = asyncio.create_task(sessions.drain(3600.0))
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="draining") as refused:
        sessions.require_open()
    assert refused.value.reason == "DRAINING"
    may_end.set()
    await asyncio.wait_for(draining, 10)
    assert (await task, sessions.num_open) == ("ended by itself", 0)


async def test_what_remains_ends_with_a_reason_that_is_worth_a_retry() -> None:
    sessions = WorkerSessions()
    task, _ = await a_session(sessions)
    await asyncio.wait_for(sessions.drain(0.0), 10)
    with pytest.raises(UnavailableError, match="time that open sessions had is over") as ended:
        await task
    assert (ended.value.reason, bool(ended.value.retry_after_s)) == ("DRAINING", True)
    assert sessions.num_open == 0


async def test_a_session_that_waits_outside_its_own_part_gets_the_reason_too() -> None:
    """As a decode worker's: its steps come from a generator, and writing them may block."""
    sessions = WorkerSessions()
    is_writing = asyncio.Event()

    async def steps() -> object:
        with sessions.one():
            yield 1

    async def handler() -> None:
        with sessions.reported():
            async for _ in steps():
                is_writing.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(handler())
    await is_writing.wait()
    await asyncio.wait_for(sessions.drain(0.0), 10)
    with pytest.raises(UnavailableError):
        await task


async def test_a_session_whose_peer_leaves_is_cancelled_as_always() -> None:
    sessions = WorkerSessions()
    task, _ = await a_session(sessions)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sessions.num_open == 0


SIGTERM_IN_A_THREAD = """
import asyncio, ctypes, threading
from ray._private import utils
from stream2llm.serving.actor import sigterm
sigterm.keep_for_actor()  # as Ray does it, before
utils.set_sigterm_handler(lambda *_: print("ended at once"))
async def serve():
    got = asyncio.Event()
    sigterm.kept_sigterm().watch(got.set)
    print("ready", flush=True)
    await got.wait()
    print("drains", flush=True)
thread = threading.Thread(target=lambda: asyncio.run(serve()))
thread.start()
# Like a Ray worker's main thread, which waits where no Python code runs.
ctypes.CDLL(None).pthread_join(ctypes.c_ulong(thread.ident), None)
"""


def test_sigterm_reaches_the_loop_of_another_thread() -> None:
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        [sys.executable, "-c", SIGTERM_IN_A_THREAD], text=True, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "drains\n"
    assert process.returncode == 0
