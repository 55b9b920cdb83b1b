"""Hundreds of sessions whose KV does not fit together: all end, nothing is computed for ever.

The production planner in virtual steps. Sessions stream for a while, many at a
time, and memory is enough for a few of them.
"""

from __future__ import annotations

import random
from math import ceil

import pytest

from prefill_worker.policy import POLICIES
from tests.planner_driver import PlannerDriver
from tests.session_machine import Tokens

NUM_SESSIONS = 300
NUM_BLOCKS = 128  # of 4 tokens; a session needs up to 30
TOKEN_BUDGET = 64


class Crowd:
    """Sessions that append or update at random until they are sealed."""

    def __init__(self, policy: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.driver = PlannerDriver(
            policy=policy,
            num_blocks=NUM_BLOCKS,
            token_budget=TOKEN_BUDGET,
            step_requests=16,
            starvation_guard_steps=200,
        )
        self.open: dict[str, list[Tokens]] = {}
        self.num_tokens = 0
        self.num_events = 0

    def document(self) -> Tokens:
        length = self.rng.randint(5, 30)
        self.num_tokens += length
        return tuple(self.rng.randrange(50_000) for _ in range(length))

    def arrive(self, name: str) -> None:
        self.open[name] = []
        self.driver.open(name, self.document(), hand_over=False)

    def event(self, name: str) -> None:
        documents = self.open[name]
        self.num_events += 1
        if len(documents) == 3 or (documents and self.rng.random() < 0.3):
            self.driver.seal(name, self.document())
            del self.open[name]
        elif documents and self.rng.random() < 0.4:
            self.open[name] = [*documents[:-1], self.document()]
            self.driver.update(name, self.open[name])
        else:
            self.open[name] = [*documents, self.document()]
            self.driver.append(name, self.open[name][-1:])


@pytest.mark.parametrize("policy", POLICIES)
def test_all_end(policy: str) -> None:
    crowd = Crowd(policy, seed=5)
    driver = crowd.driver
    for number in range(NUM_SESSIONS):
        crowd.arrive(f"s{number}")
        for name in crowd.rng.sample(sorted(crowd.open), k=min(2, len(crowd.open))):
            crowd.event(name)
        driver.step()
    while crowd.open:
        crowd.event(crowd.rng.choice(sorted(crowd.open)))
        driver.step()
        driver.check()
    # All are sealed: each needs its tokens once, whatever else it lost, and
    # once more at most for each that was guarded before it; far below this.
    longest = 5 * 30
    bound = ceil(longest / TOKEN_BUDGET) * len(driver.sessions) + 1
    for _ in range(bound):
        driver.step()
    assert len(driver.answers()) == NUM_SESSIONS
    assert driver.num_evictions > 100  # it was tight
    driver.check_empty()


@pytest.mark.parametrize("policy", POLICIES)
def test_idle_sessions_that_do_not_fit_together_come_to_rest(policy: str) -> None:
    """Each loses its KV to a newcomer; none takes it back while there is nothing new."""
    crowd = Crowd(policy, seed=6)
    driver = crowd.driver
    for number in range(40):
        crowd.arrive(f"s{number}")
        crowd.event(f"s{number}")
    num_steps = 0
    while driver.has_work() and num_steps < 200:
        driver.step()
        driver.check()
        num_steps += 1
    assert not driver.has_work()
    assert driver.num_evictions < 2 * crowd.num_events + 40
    # A session that seals is served all the same.
    for name in sorted(crowd.open):
        driver.seal(name, crowd.document())
    for _ in range(40 * ceil(5 * 30 / TOKEN_BUDGET)):
        driver.step()
    assert len(driver.answers()) == 40
    driver.check_empty()
