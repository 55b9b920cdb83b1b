"""How lists of documents change from event to event."""

from __future__ import annotations

import pytest

from experiments.document_orders import generated
from experiments.list_changes import Change, changes_of
from stream2llm.workload.document_orders import Lists

SIZES = dict.fromkeys("abcdef", 10)


def test_a_list_that_repeats_the_one_before_is_no_change() -> None:
    session = Lists((("a", "b"), ("a", "b"), ("a", "c"), ("c", "a")), SIZES)
    found = changes_of([session])
    assert found.changes == (Change(1, 0.5), Change(0, 0.0))
    assert found.per_session == 2.0
    assert found.new_documents == 0.5


def test_the_first_list_changes_nothing() -> None:
    assert not changes_of([Lists(((), ("a", "b", "c")), SIZES), Lists((), SIZES)]).changes


@pytest.mark.parametrize(
    ("new", "share"),
    [("xbcd", 0.0), ("axcd", 0.25), ("abcx", 0.75), ("abcdx", 1.0), ("ab", 0.5)],
)
def test_what_a_change_keeps_is_a_share_of_the_list_before(new: str, share: float) -> None:
    (change,) = changes_of([Lists((tuple("abcd"), tuple(new)), SIZES)]).changes
    assert change.kept_share == share


def test_shares_of_all_ranges_are_all_changes() -> None:
    found = changes_of(generated(30, seed=1))
    ranges = [(0.0, 1e-9), (1e-9, 0.5), (0.5, 0.8), (0.8, 2.0)]
    assert found.changes
    assert sum(found.share_that_keeps(*each) for each in ranges) == pytest.approx(1.0)
    # As `traces.layout` draws them: one new document an update, and nothing above it moves.
    assert found.new_documents == 1.0
