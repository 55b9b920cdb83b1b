"""Invariants of the context log and of what the client learns about it.

1. Applying every splice in order gives prefix + documents (+ suffix), always.
2. A splice keeps exactly the longest common prefix of old and new, which is common, and longest.
3. A refused event changes nothing.
4. The figures never exceed the sequence, and credit never grows beyond the window.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.context import ContextLimits, ContextLog
from router.documents import ContentDocument
from router.lengths import LengthLimits
from router.progress import ProgressTracker
from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.prefill_progress import PrefillProgress
from stream2llm.serving.sessions import prefix
from stream2llm.serving.sessions.prefix import as_tokens, common_prefix_len

LIMITS = ContextLimits(
    length=LengthLimits(60), max_total_tokens=300, max_documents_per_event=5, max_documents=10_000
)
# Few different tokens, so that common prefixes end in mid-document too.
CONTENTS = st.lists(st.integers(0, 2), max_size=8)
DOCUMENTS = st.lists(
    st.tuples(st.sampled_from(["", "a", "b", "c"]), st.none() | CONTENTS), max_size=6
)
EVENTS = st.lists(st.tuples(st.sampled_from(["append", "update"]), DOCUMENTS), max_size=12)


class Model:
    """The same rules in plain Python, without limits."""

    def __init__(self, prefix: list[int]) -> None:
        self.prefix, self.documents, self.by_id = prefix, [], {}  # type: ignore[var-annotated]

    def apply(self, kind: str, documents: list[Any]) -> None:
        listed = []
        for document_id, content in documents:
            if content is None:
                content = self.by_id[document_id]
            elif document_id:
                self.by_id[document_id] = content
            listed.append(content)
        self.documents = self.documents + listed if kind == "append" else listed

    @property
    def sequence(self) -> list[int]:
        return self.prefix + [token for document in self.documents for token in document]


def as_documents(documents: list[Any]) -> list[ContentDocument]:
    return [
        ContentDocument(document_id, None if content is None else as_tokens(content))
        for document_id, content in documents
    ]


def applied(told: list[int], splice: Any) -> list[int]:
    new = told[: splice.keep_tokens] + splice.tail.tolist()
    assert splice.keep_tokens <= len(told)
    # Longest: the first token behind what is kept differs, or one of them ends there.
    assert [*told, -1][splice.keep_tokens] != [*new, -2][splice.keep_tokens]
    assert splice.is_empty == (told == new)
    return new


@given(CONTENTS, EVENTS, CONTENTS)
def test_splices_reproduce_the_sequence(prefix: Any, events: Any, suffix: Any) -> None:
    log, model = ContextLog(as_tokens(prefix), LIMITS), Model(prefix)
    told = applied([], log.begin())
    for kind, documents in events:
        before = (told, log._context.tolist(), dict(log._by_id), log._total_tokens)
        try:
            splice = getattr(log, kind)(as_documents(documents))
        except Stream2LLMError:
            after = (log.sequence.tolist(), log._context.tolist(), log._by_id, log._total_tokens)
            assert after == before
            continue
        model.apply(kind, documents)
        told = applied(told, splice)
        assert told == model.sequence == log.sequence.tolist()
    whole = model.sequence + suffix
    spent = log._total_tokens + len(suffix)
    may_seal = 0 < len(whole) < LIMITS.length.max_model_len and spent <= LIMITS.max_total_tokens
    if may_seal:
        assert applied(told, log.seal(as_tokens(suffix), 0)) == whole
    else:
        with pytest.raises(Stream2LLMError):
            log.seal(as_tokens(suffix), 0)


@given(st.data(), st.integers(1, 50))
def test_the_figures_stay_inside_the_sequence(data: st.DataObject, window: int) -> None:
    tracker = ProgressTracker(window)
    # What a worker knows: after each revision, length and what it can still have.
    lengths = [0]
    for sequence in range(data.draw(st.integers(1, 10))):
        keep = data.draw(st.integers(0, lengths[-1]))
        length = keep + data.draw(st.integers(0, 40))
        tracker.splice(sequence, keep, length)
        lengths.append(length)
        if data.draw(st.booleans()):
            revision = data.draw(st.integers(0, len(lengths) - 1))
            prefilled = data.draw(st.integers(0, lengths[revision]))
            tracker.report(PrefillProgress(revision=revision, prefilled_tokens=prefilled))
        figures = tracker.figures()
        assert 0 <= figures.prefilled_tokens <= figures.received_tokens == length
        assert 0 <= figures.credit_tokens <= window
        assert tracker.has_credit == (figures.credit_tokens > 0)
    last = PrefillProgress(revision=len(lengths) - 1, prefilled_tokens=max(lengths[-1] - 1, 0))
    tracker.report(last)
    assert tracker.figures().credit_tokens == window  # caught up: nothing can block
    tracker.report(PrefillProgress(revision=last.revision))  # preempted
    assert tracker.has_credit


# -- the common prefix --------------------------------------------------------------------


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
