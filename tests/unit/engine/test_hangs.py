"""How long a step may take, by the steps before it, and which engine is silent for too long."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from stream2llm.engine.sign_of_life import SignOfLife
from stream2llm.engine.step_history import (
    LONGEST_FACTOR,
    MAX_LIMIT_S,
    NEW_SIZE_LIMIT_S,
    USUAL_FACTOR,
    WINDOW_STEPS,
    StepHistory,
)
from stream2llm.engine.step_limit import LIMIT_VARIABLE, StepLimit, StepTimer, limit_of_parent
from stream2llm.serving.actor.loss import Cause
from stream2llm.serving.system.clock import ManualClock
from stream2llm.serving.system.silence import Silence, is_answered
from tests.clocks import SteppedClock

# -- what earlier steps allow the next one ------------------------------------------------


def a_history(*steps: tuple[int, float], times: int = 2) -> StepHistory:
    """A history of these steps (number of tokens, seconds), each so many times."""
    history = StepHistory()
    for num_tokens, duration_s in steps:
        for _ in range(times):
            history.add(num_tokens, duration_s)
    return history


def test_the_first_step_may_compile() -> None:
    assert StepHistory().limit_s(4) == NEW_SIZE_LIMIT_S


def test_a_known_size_may_take_a_multiple_of_what_is_usual() -> None:
    history = a_history((1024, 1.0))
    # A step of 1024 tokens is the smallest of its size; the largest is twice as long.
    assert history.limit_s(1024) == USUAL_FACTOR * 2.0
    assert history.limit_s(2047) == history.limit_s(1024)


def test_a_size_that_was_met_once_may_still_compile() -> None:
    assert a_history((1024, 0.1), times=1).limit_s(1024) == NEW_SIZE_LIMIT_S


def test_a_larger_size_may_take_longer_in_proportion_to_its_tokens() -> None:
    history = a_history((8, 0.1))
    assert history.limit_s(8) == pytest.approx(USUAL_FACTOR * 0.2)
    # 512 has six bits more than 8.
    assert history.limit_s(512) == pytest.approx(USUAL_FACTOR * 0.2 * 64)


def test_what_is_extrapolated_ends_somewhere() -> None:
    assert a_history((1, 1.0)).limit_s(8192) == MAX_LIMIT_S


def test_one_exception_counts_twice_and_not_as_usual() -> None:
    history = a_history((1, 0.05), times=20)
    history.add(1, 54.0)
    assert history.limit_s(1) == LONGEST_FACTOR * 54.0


def test_what_a_smaller_step_took_a_larger_one_may_take_too() -> None:
    history = a_history((2048, 0.1), (4, 3.0))
    assert history.limit_s(2048) >= USUAL_FACTOR * 3.0
    assert history.limit_s(2) == NEW_SIZE_LIMIT_S  # but no smaller one


def test_a_slow_time_is_forgotten_but_for_its_longest_step() -> None:
    history = a_history((1, 3.0))
    for _ in range(2 * WINDOW_STEPS):
        history.add(1, 0.05)
    assert history.limit_s(1) == LONGEST_FACTOR * 3.0


def test_a_step_without_tokens_says_nothing_of_one_with_tokens() -> None:
    assert a_history((0, 0.001)).limit_s(512) == NEW_SIZE_LIMIT_S


# -- the limit, from the scheduler to the front end ---------------------------------------


def test_another_process_writes_what_this_one_reads() -> None:
    limit, path = StepLimit.create()
    assert limit.read() == NEW_SIZE_LIMIT_S
    code = (
        "from stream2llm.engine.step_limit import limit_of_parent as of_parent;"
        "of_parent().write(12.5)"
    )
    environment = {**os.environ, LIMIT_VARIABLE: path}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert limit.read() == 12.5


def test_a_scheduler_without_a_front_end_writes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    assert limit_of_parent() is None
    monkeypatch.setenv(LIMIT_VARIABLE, "/proc/self/fd/none")
    assert limit_of_parent() is None
    timer = StepTimer(ManualClock(), None)
    timer.begin(1)
    timer.end()


def test_a_step_has_a_limit_while_it_runs() -> None:
    clock, (limit, _) = ManualClock(), StepLimit.create()
    timer = StepTimer(clock, limit)
    assert limit.read() == 0.0  # an engine without work answers at once
    timer.begin(8)
    assert limit.read() == NEW_SIZE_LIMIT_S
    clock.advance(40.0)
    timer.end()
    assert limit.read() == 0.0
    timer.begin(8)
    assert limit.read() == LONGEST_FACTOR * 40.0


def test_steps_that_overlap_are_timed_one_after_the_other() -> None:
    clock, (limit, _) = ManualClock(), StepLimit.create()
    timer = StepTimer(clock, limit)
    timer.begin(1)
    timer.begin(1)
    clock.advance(40.0)
    timer.end()  # took 40 s
    assert limit.read() == LONGEST_FACTOR * 40.0  # of the one that runs
    clock.advance(1.0)
    timer.end()  # took 1 s, and not 41
    timer.begin(1)
    assert limit.read() == LONGEST_FACTOR * 40.0


# -- who is silent for too long -----------------------------------------------------------


LOOK_S = 0.001
LEAST_S = 10 * LOOK_S


class Engine:
    """Answers so many questions, then none."""

    def __init__(self, num_answers: int = 0, error: Exception | None = None) -> None:
        self._left = num_answers
        self._error = error
        self.num_questions = 0

    async def ask(self) -> None:
        self.num_questions += 1
        self._left -= 1
        if self._left < 0 and self._error is not None:
            raise self._error
        if self._left < 0:
            await asyncio.Event().wait()


def a_sign_of_life(engine: Engine, step_limit_s: Callable[[], float] = lambda: 0.0) -> SignOfLife:
    clock = SteppedClock(LOOK_S)
    return SignOfLife(engine.ask, step_limit_s, LEAST_S, clock, pause_s=0.0, look_every_s=LOOK_S)


async def test_an_engine_that_answers_no_more_hangs() -> None:
    engine = Engine(num_answers=5)
    sign = a_sign_of_life(engine)
    loss = await sign.until_hung()
    assert engine.num_questions == 6
    assert loss.cause is Cause.HUNG
    assert sign.silent_s > sign.limit_s == LEAST_S


async def test_a_step_may_take_as_long_as_the_longest_limit_since_the_question() -> None:
    limits = iter((0.0, 0.0, 3 * LEAST_S))
    sign = a_sign_of_life(Engine(), lambda: next(limits, 0.0))
    await sign.until_hung()
    assert sign.silent_s > 3 * LEAST_S


async def test_the_death_of_an_engine_is_not_a_hang() -> None:
    with pytest.raises(ConnectionError):
        await a_sign_of_life(Engine(1, ConnectionError())).until_hung()


async def test_a_paused_machine_is_no_silence() -> None:
    """Each look comes an hour after the one before: no other process has run meanwhile."""
    silence, clock = Silence(LEAST_S, LOOK_S), SteppedClock(3600.0)
    question = asyncio.get_running_loop().create_future()
    looks = 0

    def answer_at_the_fourth_look() -> float:
        nonlocal looks
        looks += 1
        if looks == 4:
            question.set_result(None)
        return 0.0

    assert await is_answered(question, silence, clock.monotonic_s, answer_at_the_fourth_look)
    assert 0 < silence.silent_s < LEAST_S


def test_a_late_look_counts_as_two() -> None:
    silence = Silence(10.0, look_every_s=0.5)
    silence.note(0.5)
    silence.note(25.0)
    assert silence.silent_s == 1.5
