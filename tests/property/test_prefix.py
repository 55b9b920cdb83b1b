"""The common prefix is common, and longest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm.serving.sessions import prefix
from stream2llm.serving.sessions.prefix import common_prefix_len

tokens = st.lists(st.integers(0, 3), max_size=30)


@given(tokens, tokens)
def test_it_is_common_and_longest(a: list[int], b: list[int]) -> None:
    length = common_prefix_len(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]


@given(tokens, tokens, st.integers(0, 30))
def test_a_start_is_the_same_as_a_slice(a: list[int], b: list[int], start: int) -> None:
    start = min(start, len(a))
    assert common_prefix_len(a, b, old_start=start) == common_prefix_len(a[start:], b)


@pytest.mark.parametrize("differs_at", [0, 1, 255, 256, 257, 767, 768, 16_128, 40_000, None])
def test_it_holds_across_the_chunks_it_compares(differs_at: int | None) -> None:
    a = list(range(50_000))
    b = list(a)
    if differs_at is not None:
        b[differs_at] += 1
    assert common_prefix_len(a, b) == (50_000 if differs_at is None else differs_at)
    assert prefix.as_tokens(a).dtype.itemsize == 4
