"""No session starves: the bound of `prefill_worker/starvation_guard.py`, with endless rivals.

For each policy there is a stream of rivals that it prefers to the victim for
ever; without the starvation guard the victim never gets a token, which the first test
shows, so that the others mean something.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import pytest

from prefill_worker.policy import POLICIES, SRPF_AGEING
from prefill_worker.starvation_guard import GUARDED_TURN
from tests.builders import a_request
from tests.planner_driver import PlannerDriver
from tests.session_machine import Tokens

TOKEN_BUDGET = 8
STARVATION_GUARD_STEPS = 20
NEVER = 10**9
VICTIM_TOKENS = 40


def has_tiers(policy: str) -> bool:
    """Whether the policy serves a sealed session before an open one that came earlier."""
    rank = POLICIES[policy].serve
    sealed = a_request("new", sealed=True, arrival=2, last_event=2, known=VICTIM_TOKENS)
    return rank(sealed) < rank(a_request("old", arrival=1, last_event=1, known=VICTIM_TOKENS))


class Arena:
    """A planner under a stream of rivals that takes all of every step."""

    def __init__(self, policy: str, starvation_guard_steps: int, num_blocks: int = 2000) -> None:
        self.driver = PlannerDriver(
            policy=policy,
            num_blocks=num_blocks,
            token_budget=TOKEN_BUDGET,
            step_requests=64,
            starvation_guard_steps=starvation_guard_steps,
        )
        self.num_steps = 0
        self._next_token = 0
        self._rivals: Callable[[], None] = (
            self._sealed_rival if has_tiers(policy) else self._growing_rival
        )
        self._rivals()
        self._step()

    def tokens(self, count: int) -> Tokens:
        """Tokens that no other session has."""
        self._next_token += count
        return tuple(range(self._next_token - count, self._next_token))

    def _sealed_rival(self) -> None:
        """A new question each step: sealed sessions go before open ones."""
        name = f"rival-{self.num_steps}"
        self.driver.open(name, self.tokens(TOKEN_BUDGET), hand_over=False)
        self.driver.seal(name, ())

    def _growing_rival(self) -> None:
        """A session that runs already, has the most tokens computed, and gets more each step."""
        if not self.num_steps:
            # Its last token is held back.
            self.driver.open("rival", self.tokens(TOKEN_BUDGET + 1), hand_over=False)
        else:
            self.driver.append("rival", [self.tokens(TOKEN_BUDGET)])

    def _step(self) -> None:
        self.driver.step()
        self.driver.check()
        self.num_steps += 1

    def open_victim(self, name: str) -> None:
        self.driver.open(name, self.tokens(VICTIM_TOKENS), hand_over=False)

    def steps_until_computed(self, name: str, at_most: int) -> int | None:
        """In which step from now the session has nothing left to compute."""
        for step in range(1, at_most + 1):
            self._rivals()
            self._step()
            session = self.driver.sessions.get(name)
            if session is None or session.computed >= VICTIM_TOKENS - 1:
                return step
        return None


@pytest.mark.parametrize("policy", POLICIES)
def test_without_the_starvation_guard_the_victim_would_starve(policy: str) -> None:
    arena = Arena(policy, NEVER)
    arena.open_victim("victim")
    assert arena.steps_until_computed("victim", at_most=300) is None
    assert arena.driver.sessions["victim"].computed == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_a_session_is_served_within_the_bound(policy: str) -> None:
    arena = Arena(policy, STARVATION_GUARD_STEPS)
    arena.open_victim("victim")
    # The rival of the growing kind has caught up in every step: it never waits.
    bound = STARVATION_GUARD_STEPS + GUARDED_TURN * ceil(VICTIM_TOKENS / TOKEN_BUDGET)
    assert arena.steps_until_computed("victim", at_most=bound) > STARVATION_GUARD_STEPS


@pytest.mark.parametrize("policy", POLICIES)
def test_several_victims_are_served_one_after_the_other(policy: str) -> None:
    arena = Arena(policy, STARVATION_GUARD_STEPS)
    victims = [f"victim-{n}" for n in range(4)]
    for name in victims:
        arena.open_victim(name)
    bound = STARVATION_GUARD_STEPS + GUARDED_TURN * len(victims) * ceil(
        VICTIM_TOKENS / TOKEN_BUDGET
    )
    assert arena.steps_until_computed(victims[-1], at_most=bound) is not None
    assert all(arena.driver.sessions[name].computed for name in victims)


@pytest.mark.parametrize("policy", list(filter(has_tiers, POLICIES)))
def test_the_bound_holds_where_the_victim_needs_all_of_the_memory(policy: str) -> None:
    arena = Arena(policy, STARVATION_GUARD_STEPS, num_blocks=VICTIM_TOKENS // 4)
    arena.open_victim("victim")
    bound = STARVATION_GUARD_STEPS + GUARDED_TURN * ceil(VICTIM_TOKENS / TOKEN_BUDGET)
    assert arena.steps_until_computed("victim", at_most=bound) is not None


def test_under_fcfs_a_sealed_session_waits_for_earlier_ones_only() -> None:
    """A tighter bound than the starvation guard gives: the tokens of sealed sessions that came before."""
    arena = Arena("fcfs", NEVER)
    arena.open_victim("victim")
    arena.driver.seal("victim", ())
    bound = ceil((TOKEN_BUDGET + VICTIM_TOKENS) / TOKEN_BUDGET)
    assert arena.steps_until_computed("victim", at_most=bound) is not None


def test_under_srpf_a_sealed_session_waits_for_so_many_tokens_per_token_of_its_own() -> None:
    """Shorter ones that come later overtake it, but not for ever, without the starvation guard."""
    arena = Arena("srpf", NEVER)
    arena.open_victim("victim")
    arena.driver.seal("victim", ())
    overtaking = SRPF_AGEING * (VICTIM_TOKENS - TOKEN_BUDGET)
    bound = ceil((overtaking + TOKEN_BUDGET + VICTIM_TOKENS) / TOKEN_BUDGET)
    assert arena.steps_until_computed("victim", at_most=bound) > overtaking // TOKEN_BUDGET
