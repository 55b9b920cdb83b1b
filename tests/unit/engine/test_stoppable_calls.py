"""Calls in processes of their own, with functions that are slow, fail, or end their process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from stream2llm.engine.stoppable_calls import (
    CallFailedError,
    CallStoppedError,
    NoProcessError,
    StoppableCalls,
)

# No call that shall answer takes as long, on a busy machine either.
PATIENCE_S = 300.0


def compiler(prefix: str) -> Callable[[str], str]:
    """In the server: a function that obeys its argument."""

    def obey(order: str) -> str:
        if order == "spin":
            while True:
                pass
        if order == "block":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            time.sleep(1e6)
        if order == "raise":
            raise ValueError("no such rule")
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return f"{prefix} {order}"

    return obey


@pytest.fixture
def calls() -> Iterator[StoppableCalls]:
    calls = StoppableCalls(f"{__name__}:compiler", "did")
    yield calls
    calls.close()


def test_a_call_returns_what_its_function_returns(calls: StoppableCalls) -> None:
    assert calls.call("this", PATIENCE_S) == "did this"
    assert calls.call("x" * 10_000_000, PATIENCE_S) == "did " + "x" * 10_000_000


def test_what_the_function_raises_and_the_death_of_its_process_fail_that_call_alone(
    calls: StoppableCalls,
) -> None:
    with pytest.raises(CallFailedError, match="no such rule"):
        calls.call("raise", PATIENCE_S)
    with pytest.raises(CallFailedError, match="its process died"):
        calls.call("die", PATIENCE_S)
    assert calls.call("this", PATIENCE_S) == "did this"


@pytest.mark.parametrize("order", ["spin", "block"])
def test_one_that_takes_for_ever_is_stopped_and_holds_up_no_other(
    calls: StoppableCalls, order: str
) -> None:
    with ThreadPoolExecutor(1) as threads:
        stuck = threads.submit(calls.call, order, 0.5)
        assert calls.call("this", PATIENCE_S) == "did this"
        with pytest.raises(CallStoppedError, match=r"takes longer than 0\.5 s"):
            stuck.result()


def test_a_server_that_is_gone_is_started_anew(calls: StoppableCalls) -> None:
    assert calls.call("this", PATIENCE_S) == "did this"
    calls._server._process.kill()
    calls._server._process.wait()
    assert calls.call("that", PATIENCE_S) == "did that"


def test_what_the_server_cannot_import_fails_the_call() -> None:
    calls = StoppableCalls("tests.no_such_module:compiler", None)
    with pytest.raises(NoProcessError, match="ended before the call"):
        calls.call("this", PATIENCE_S)
    calls.close()
