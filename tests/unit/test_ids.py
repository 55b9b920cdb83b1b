"""Engine ids contain nothing that has a meaning to other software."""

from __future__ import annotations

import pytest

from stream2llm.serving.sessions.ids import unique_id


@pytest.mark.parametrize("hint", ["HB:x", "a,b", "", "x" * 10_000, "\x00é\n", "../.."])
def test_only_harmless_characters_survive(hint: str) -> None:
    made = unique_id(hint)
    assert made.startswith("s-")
    assert made.replace("-", "").replace("_", "").isalnum()
    assert made.isascii()
    assert len(made) < 100


def test_equal_hints_give_different_ids() -> None:
    assert unique_id("same") != unique_id("same")
