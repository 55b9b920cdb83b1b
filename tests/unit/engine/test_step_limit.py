"""The limit of the present step, from the scheduler to the front end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stream2llm.engine.step_history import LONGEST_FACTOR, NEW_SIZE_LIMIT_S
from stream2llm.engine.step_limit import LIMIT_VARIABLE, StepLimit, StepTimer, limit_of_parent
from stream2llm.serving.system.clock import ManualClock

pytestmark = pytest.mark.unit


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
