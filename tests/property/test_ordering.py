"""Invariants of the stable order of documents.

1. A layout is a permutation of what is wanted.
2. No permutation of what is wanted shares a longer beginning with the present order.
3. Wanting what stands there, in any order, changes nothing.
4. Documents that only join go to the end, in their own order.
5. Behind the first document that is left out, the order is that of the ranking.
6. The context log with stable order: splices reproduce the sequence, the sequence holds
   the documents of the list, and no permutation of them keeps more documents.
7. The ranking gives back the list as it was sent, and the order the documents as they stand.
"""

from __future__ import annotations

from collections import Counter
from itertools import permutations, takewhile
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.arrangement import Arrangement, ListedDocument
from router.context import ContextLimits, ContextLog
from router.lengths import LengthLimits
from router.ordering import layout, num_kept
from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.options import DocumentOrdering
from stream2llm.serving.sessions.prefix import as_tokens
from tests.property.test_context import applied, as_documents

# Few different ones, so that lists overlap, and some occur twice.
LISTS = st.lists(st.sampled_from("abcdefg"), max_size=6)
LIMITS = ContextLimits(
    length=LengthLimits(10_000),
    max_total_tokens=100_000,
    max_documents_per_event=20,
    max_documents=10_000,
)
# A document's content is one of few too: its id may stand for another one later.
CONTENTS = st.lists(st.integers(0, 1), max_size=2)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["append", "update", "update"]),
        st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d"]), CONTENTS), max_size=5),
    ),
    max_size=8,
)


def shared(old: Any, new: Any) -> int:
    """Length of the common beginning."""
    pairs = zip(old, new, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@given(LISTS, LISTS)
def test_a_layout_is_a_permutation_of_what_is_wanted(current: Any, wanted: Any) -> None:
    assert Counter(layout(current, wanted)) == Counter(wanted)


@given(LISTS, LISTS)
def test_no_other_order_keeps_more(current: Any, wanted: Any) -> None:
    kept = shared(current, layout(current, wanted))
    assert kept == num_kept(current, wanted)
    assert kept == max(shared(current, each) for each in permutations(wanted))


@given(LISTS, st.randoms(use_true_random=False))
def test_another_ranking_of_the_same_documents_moves_nothing(current: Any, rng: Any) -> None:
    assert layout(current, current) == current
    assert layout(current, rng.sample(current, len(current))) == current


@given(LISTS, LISTS, st.randoms(use_true_random=False))
def test_what_joins_goes_to_the_end(current: Any, more: Any, rng: Any) -> None:
    more = [each.upper() for each in more]
    slots = sorted(rng.randrange(len(current) + 1) for _ in more)
    wanted = rng.sample(current, len(current))
    for offset, (slot, each) in enumerate(zip(slots, more, strict=True)):
        wanted.insert(slot + offset, each)
    assert layout(current, wanted) == [*current, *more]


@given(LISTS, LISTS)
def test_what_must_be_computed_anyway_stands_in_the_ranking(current: Any, wanted: Any) -> None:
    kept = num_kept(current, wanted)
    rest = list(wanted)
    for each in current[:kept]:
        rest.remove(each)
    laid_out = layout(current, wanted)
    assert Counter(laid_out[kept:]) == Counter(rest)
    if len(set(wanted)) == len(wanted):
        assert laid_out[kept:] == rest


@given(CONTENTS, EVENTS)
def test_the_context_log_lays_out_every_list(prefix: Any, events: Any) -> None:
    log = ContextLog(as_tokens(prefix), LIMITS, DocumentOrdering.STABLE)
    told, listed = applied([], log.begin()), []
    for kind, documents in events:
        before = log.arrangement
        try:
            splice = getattr(log, kind)(as_documents(documents))
        except Stream2LLMError:  # an id twice in one event
            assert log.arrangement is before
            continue
        told = applied(told, splice)
        contents = [content for _, content in documents]
        listed = [*listed, *contents] if kind == "append" else contents
        after = [each.tokens.tolist() for each in log.arrangement.documents]
        assert told == prefix + [token for each in after for token in each]
        assert told == log.sequence.tolist()
        assert [after[place] for place in log.arrangement.ranking] == listed
        assert [listed[place] for place in log.arrangement.order] == after
        old = [each.tokens.tolist() for each in before.documents]
        if len(listed) <= 6:
            assert shared(old, after) == max(shared(old, each) for each in permutations(listed))


@given(st.lists(st.tuples(st.sampled_from("ab"), LISTS), max_size=6))
def test_the_hidden_ranking_is_none_exactly_when_documents_stand_in_it(events: Any) -> None:
    arrangement, listed = Arrangement(), []
    for kind, names in events:
        documents = [ListedDocument(name, as_tokens([ord(name)])) for name in names]
        change = arrangement.append if kind == "a" else arrangement.update
        listed = [*listed, *names] if kind == "a" else names
        arrangement = change(documents)
        stand = [each.document_id for each in arrangement.documents]
        hidden = arrangement.hidden_ranking()
        assert (hidden == ()) == (stand == listed)
        assert not hidden or [stand[place] for place in hidden] == listed
