"""The trace with which the simulator is held against a live cluster."""

from __future__ import annotations

import pytest

from experiments.validate_simulator import Trial, fitting_sessions
from stream2llm.simulator.steps import StepLaw
from stream2llm.simulator.work import tasks

pytestmark = pytest.mark.unit

LAW = StepLaw(0.016, 0.00054, 4e-7)
TRIAL = Trial("anns", 80, load=0.6, policy="srpf", seed=1)


def test_sessions_that_were_too_long_at_any_moment_are_left_out():
    every = fitting_sessions(TRIAL, LAW, 512, 10**9, None)
    short = fitting_sessions(TRIAL, LAW, 512, 7782, None)
    kept = {session.id for session in short}
    left_out = [task for task in tasks(every) if task.name not in kept]
    assert len(every) == 80
    assert left_out
    assert all(task.num_longest_tokens > 7782 for task in left_out)
    assert any(task.num_tokens <= 7782 for task in left_out), "one that fits at its seal"
    assert all(task.num_longest_tokens <= 7782 for task in tasks(short))


def test_the_load_is_that_of_the_sessions_that_are_kept():
    every = fitting_sessions(TRIAL, LAW, 512, 10**9, None)
    short = fitting_sessions(TRIAL, LAW, 512, 7782, None)
    assert short[-1].arrival_s < every[-1].arrival_s
