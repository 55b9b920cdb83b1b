"""The limit of a step never is a false alarm, on any machine and with any steps.

1. A step that takes no longer than an earlier one of no more tokens is within its limit.
2. A step that takes ten times as long as it would on a calm machine is within its limit, or
   within the least one that an operator can set.
3. Twice the longest step and `MAX_LIMIT_S` bound the limit: a hang is found.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream2llm.engine.step_history import LONGEST_FACTOR, MAX_LIMIT_S, StepHistory

LEAST_LIMIT_S = 10.0
num_tokens = st.integers(0, 8192)
steps = st.lists(st.tuples(num_tokens, st.floats(0, 300)), max_size=40)


@given(steps, num_tokens)
def test_no_step_is_too_long_that_was_seen_before(
    before: list[tuple[int, float]], tokens: int
) -> None:
    history = StepHistory()
    for each in before:
        history.add(*each)
    longest_s = max((s for n, s in before if n <= tokens), default=0.0)
    assert history.limit_s(tokens) >= LONGEST_FACTOR * longest_s


@given(steps, num_tokens)
def test_a_hang_is_found(before: list[tuple[int, float]], tokens: int) -> None:
    history = StepHistory()
    for each in before:
        history.add(*each)
    longest_s = max((s for _, s in before), default=0.0)
    assert history.limit_s(tokens) <= max(MAX_LIMIT_S, LONGEST_FACTOR * longest_s)


@given(
    st.floats(0.0001, 0.5),  # seconds of a step, however small
    st.floats(0, 0.005),  # and of each token
    st.lists(st.tuples(num_tokens, st.floats(1.0, 1.2), st.booleans()), min_size=1, max_size=60),
)
def test_a_machine_may_become_ten_times_slower(
    step_s: float, token_s: float, served: list[tuple[int, float, bool]]
) -> None:
    history = StepHistory()
    # The handshake of a pair of workers, by which every engine begins.
    history.add(4, step_s + 4 * token_s)
    for tokens, noise, is_slow in served:
        duration_s = (step_s + tokens * token_s) * noise * (10.0 if is_slow else 1.0)
        assert duration_s <= max(LEAST_LIMIT_S, history.limit_s(tokens))
        history.add(tokens, duration_s)
