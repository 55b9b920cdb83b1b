"""Measures prefill times on a real engine: sessions of random tokens, step by step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from prefill_worker.local_engine import LocalEngine
from prefill_worker.profile_budget import Budget
from prefill_worker.profile_plan import RecomputePlan, Samples
from prefill_worker.session_state import ContextEvent

MAX_ROUNDS = 5
# Maximum share of the time for the first round: a median needs three rounds.
FIRST_ROUND_SHARE = 1 / 3
# Assumed maximum ratio between the durations of a full step and the one before it.
GROWTH = 1.25


@dataclass(slots=True)
class RecomputeTimes:
    """Seconds of whole engine steps: scheduling, the model, and postprocessing."""

    from_nothing: Samples = field(default_factory=Samples)
    # By the number of context tokens before the step.
    behind: Samples = field(default_factory=Samples)


class RecomputeMeter:
    """Runs a plan on an otherwise idle engine."""

    def __init__(self, engine: LocalEngine, plan: RecomputePlan) -> None:
        self._engine = engine
        self._plan = plan
        # Equal tokens would hit the prefix cache.
        self._random = random.Random(0)
        self._vocab_size = engine.config.model_config.get_vocab_size()
        self._num_sessions = 0
        # Duration of the last full step.
        self._full_step_s = 0.0

    def measure(self, budget: Budget) -> RecomputeTimes:
        """Runs up to five rounds until the time is up.

        The first round decides how far the long run goes: as far as a third of the
        time reaches. Raises InvalidRequestError when that is not even its first step.
        """
        self._warm_up(budget)
        times = RecomputeTimes()
        reach = self._round(times, budget.part(FIRST_ROUND_SHARE), self._plan.num_steps, 1)
        if reach < 1:
            raise budget.too_short("one step of recompute does not fit into it")
        for number in range(2, MAX_ROUNDS + 1):
            if self._round(times, budget, reach, number) < reach:
                break
        return times

    def _warm_up(self, budget: Budget) -> None:
        """Runs the first steps, which allocate and compile."""
        plan = self._plan
        budget.progress.report(
            f"recompute: up to {plan.num_steps} steps of {plan.token_budget} tokens"
        )
        for num_tokens in (plan.single_steps[0], plan.token_budget):
            for _ in self._steps(num_tokens, budget):
                pass

    def _round(self, times: RecomputeTimes, budget: Budget, num_steps: int, number: int) -> int:
        """Runs all sizes once; returns how many steps of the long run fitted into the time."""
        for num_tokens in self._plan.single_steps[:-1]:
            for _, seconds in self._steps(num_tokens, budget):
                times.from_nothing.add(num_tokens, seconds)
        return self._long_run(times, budget, num_steps, number)

    def _long_run(self, times: RecomputeTimes, budget: Budget, num_steps: int, number: int) -> int:
        num_done, token_budget = 0, self._plan.token_budget
        for context, seconds in self._steps(num_steps * token_budget, budget):
            if context:
                times.behind.add(context, seconds)
            else:
                times.from_nothing.add(token_budget, seconds)
            num_done += 1
            budget.progress.tick(
                f"recompute: round {number} of {MAX_ROUNDS}, step {num_done} of {num_steps}:"
                f" {token_budget} tokens behind {context} in {seconds:.3f} s"
            )
        return num_done

    def _steps(self, num_tokens: int, budget: Budget) -> Iterator[tuple[int, float]]:
        """Yields a session's context before each of its steps, and the step's seconds.

        Ends early when another step like the last one would not end in time.
        """
        session, clock = self._open(num_tokens), budget.clock
        counters = self._engine.scheduler.counters
        start, token_budget = counters.computed_tokens, self._plan.token_budget
        try:
            while (context := counters.computed_tokens - start) < num_tokens:
                is_full = num_tokens - context >= token_budget
                if not budget.has(GROWTH * self._full_step_s if is_full else 0.0):
                    return
                began_s = clock.monotonic_s()
                self._engine.step()
                seconds = clock.monotonic_s() - began_s
                if is_full:
                    self._full_step_s = seconds
                yield context, seconds
        finally:
            self._engine.cancel(session)

    def _open(self, num_tokens: int) -> str:
        """Opens a session, with one token more than asked because the last one is held back."""
        self._num_sessions += 1
        session = f"profile-{self._num_sessions}"
        tokens = [self._random.randrange(self._vocab_size) for _ in range(num_tokens + 1)]
        self._engine.add(session, tokens, ContextEvent(1, 0, seal=False, begins=True))
        return session
