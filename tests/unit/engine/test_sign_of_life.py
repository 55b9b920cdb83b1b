"""Who is silent for too long, and who is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from stream2llm.engine.sign_of_life import SignOfLife
from stream2llm.serving.actor.loss import Cause
from stream2llm.serving.system.silence import Silence, is_answered
from tests.clocks import SteppedClock

pytestmark = pytest.mark.unit

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
