"""Invariants of what a lane sends to its session.

1. The session's documents are the wanted sequence, whatever came before.
2. A content is sent once, but for the kept part of the one piece that a change cuts.
3. What stays valid is the longest common prefix, and a sequence that only grows is appended.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream2llm.gateway.lanes.pieces import Sent, change_to
from stream2llm.serving.sessions.prefix import as_tokens

pytestmark = pytest.mark.property

# Few different tokens, so that common prefixes end within parts too.
PARTS = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=6)


class Router:
    """The documents of a session, by the rules for its events."""

    def __init__(self) -> None:
        self.documents: list[list[int]] = []
        self.by_id: dict[str, list[int]] = {}
        self.num_sent = 0

    def take(self, change: object) -> None:
        listed = []
        for document in change.documents:  # type: ignore[attr-defined]
            if document.content is None:
                assert change.is_update  # type: ignore[attr-defined]
                listed.append(self.by_id[document.id])
                continue
            assert document.id not in self.by_id, "sent before"
            self.by_id[document.id] = document.content
            self.num_sent += len(document.content)
            listed.append(document.content)
        kept = [] if change.is_update else self.documents  # type: ignore[attr-defined]
        self.documents = kept + listed

    @property
    def sequence(self) -> list[int]:
        return [token for document in self.documents for token in document]


def common(old: list[int], new: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), -1)


@given(st.lists(PARTS, max_size=8))
def test_the_session_has_the_wanted_sequence(wanted: list[list[list[int]]]) -> None:
    router, sent = Router(), Sent()
    for parts in wanted:
        old, before = router.sequence, router.num_sent
        new = [token for part in parts for token in part]
        change = change_to(sent, [as_tokens(part) for part in parts])
        router.take(change)
        sent = change.after
        assert router.sequence == new == sent.sequence.tolist()
        differs = common(old, new)
        num_common = min(len(old), len(new)) if differs < 0 else differs
        assert change.num_kept == num_common
        assert change.num_invalidated == len(old) - num_common
        longest_piece = max((len(piece) for piece in router.by_id.values()), default=0)
        assert router.num_sent - before <= len(new) - num_common + longest_piece


@given(PARTS, st.lists(st.integers(3, 9), min_size=1, max_size=6))
def test_a_sequence_that_grows_is_appended(parts: list[list[int]], more: list[int]) -> None:
    old = [as_tokens(part) for part in parts]
    sent = change_to(Sent(), old).after
    change = change_to(sent, [*old, as_tokens(more)])
    assert not change.is_update
    assert [document.content for document in change.documents] == [more]
    assert change_to(change.after, [*old, as_tokens(more)]).is_empty
