"""Invariants of what a client keeps of a session, against the router's own context log.

1. What is sent again brings another router to the same sequence, whatever was sent before.
2. So do the events after that, also where they name documents that only the first router had.
3. No event is larger than the limit, unless it has one document, or has more documents than
   the client has sent in one event.
4. The figures include everything with the last event, by its number.
"""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.context import ContextLimits, ContextLog
from router.documents import ContentDocument
from router.lengths import LengthLimits
from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.options import DocumentOrdering
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.sent_context import SentContext
from stream2llm.serving.sessions.prefix import as_tokens

LIMITS = ContextLimits(
    length=LengthLimits(1000),
    max_total_tokens=10_000,
    max_documents_per_event=100,
    max_documents=10_000,
)
IDS = ["", "a", "b", "c"]
CONTENTS = st.lists(st.integers(0, 2), max_size=4)
DOCUMENTS = st.lists(st.tuples(st.sampled_from(IDS), st.none() | CONTENTS), max_size=4)
EVENTS = st.lists(st.tuples(st.sampled_from(["append", "update"]), DOCUMENTS), max_size=8)
ORDERINGS = st.sampled_from(list(DocumentOrdering))


class Sides:
    """The router that a session is at, and what its client keeps."""

    def __init__(self, ordering: DocumentOrdering) -> None:
        self.ordering = ordering
        self.kept = SentContext(1 << 20, keeps_events=ordering is DocumentOrdering.STABLE)
        self.log = self.new_log()
        self.sequence = 1
        self.most_documents = 1

    def new_log(self) -> ContextLog:
        log = ContextLog(as_tokens([]), LIMITS, self.ordering)
        log.begin()
        return log

    def send(self, kind: str, documents: list[Any]) -> bool:
        """Returns whether the router takes it; with what it refuses, a session fails."""
        event = as_event(kind, documents, self.sequence + 1)
        if kind == "update":
            event.update.CopyFrom(self.kept.completed(event.update))
        if not is_taken(self.log, event):
            return False
        self.sequence += 1
        self.most_documents = max(self.most_documents, len(documents))
        self.kept.sent(event)
        return True


def as_event(kind: str, documents: list[Any], sequence: int) -> Any:
    listed = []
    for document_id, content in documents:
        document = pb.Document(id=document_id, stays=0.5 if kind == "update" else None)
        if content is not None:
            document.token_ids.ids.extend(content)
            document.token_ids.SetInParent()
        listed.append(document)
    request = pb.StreamGenerateRequest(sequence=sequence)
    getattr(request, kind).documents.extend(listed)
    getattr(request, kind).SetInParent()
    return request


def is_taken(log: ContextLog, request: Any) -> bool:
    try:
        apply(log, request)
    except Stream2LLMError:
        return False
    return True


def apply(log: ContextLog, request: Any) -> None:
    kind = request.WhichOneof("event")
    documents = [
        ContentDocument(
            each.id, as_tokens(list(each.token_ids.ids)) if each.HasField("token_ids") else None
        )
        for each in getattr(request, kind).documents
    ]
    getattr(log, kind)(documents)


# A document twice in the list, and one that is named again after it was left out.
TWICE = [("update", [("a", [1]), ("a", None), ("b", [2])]), ("append", [("b", [0])])]
LEFT_OUT = [("update", [("a", [1])]), ("update", [("b", [2])])]
AGAIN = [("update", [("b", None), ("a", None)])]
AGAIN_TWICE = [("update", [("a", None), ("a", None)])]
AGAIN_AND_NEW = [("update", [("a", None), ("a", [0]), ("a", None)])]


@example(DocumentOrdering.AS_GIVEN, TWICE, AGAIN, 10_000)
@example(DocumentOrdering.AS_GIVEN, LEFT_OUT, AGAIN, 10_000)
@example(DocumentOrdering.AS_GIVEN, LEFT_OUT, AGAIN_TWICE, 10_000)
@example(DocumentOrdering.AS_GIVEN, LEFT_OUT, AGAIN_AND_NEW, 10_000)
@settings(max_examples=200)
@given(ORDERINGS, EVENTS, EVENTS, st.sampled_from([64, 110, 10_000]))
def test_another_router_comes_to_the_same_context(
    ordering: DocumentOrdering, before: Any, after: Any, limit_bytes: int
) -> None:
    sides = Sides(ordering)
    for kind, documents in before:
        sides.send(kind, documents)
    another = sides.new_log()
    requests = sides.kept.again(limit_bytes)
    for request in requests:
        apply(another, request)
        num_documents = len(request.append.documents)
        if ordering is DocumentOrdering.AS_GIVEN:
            assert num_documents <= sides.most_documents
            assert num_documents == 1 or request.ByteSize() <= limit_bytes
    assert another.sequence.tolist() == sides.log.sequence.tolist()
    assert another.arrangement.order == sides.log.arrangement.order
    if requests:
        assert requests[-1].sequence == sides.sequence
    expected = sides.log
    sides.log = another
    for kind, documents in after:
        assert sides.send(kind, documents) == is_taken(expected, as_event(kind, documents, 0))
    assert another.sequence.tolist() == expected.sequence.tolist()


def test_what_is_too_much_is_not_kept() -> None:
    kept = SentContext(100, keeps_events=False)
    kept.sent(as_event("append", [("a", [1] * 10)], 2))
    assert kept.is_kept
    kept.sent(as_event("append", [("b", [1] * 100)], 3))
    assert not kept.is_kept
    assert kept.again(1000) == []


def test_documents_that_the_present_router_lacks_are_kept_beyond_the_bound() -> None:
    kept = SentContext(200, keeps_events=False)
    kept.sent(as_event("update", [("a", [1]), ("b", [1])], 2))
    kept.sent(as_event("update", [("c", [1])], 3))
    kept.again(1000)
    kept.sent(as_event("append", [("b", [2] * 200)], 4))
    assert not kept.is_kept
    wanted = as_event("update", [("a", None), ("b", None), ("c", None)], 5).update
    completed = kept.completed(wanted).documents
    assert [each.HasField("token_ids") for each in completed] == [True, False, False]


def test_nothing_is_kept_where_nothing_may_be() -> None:
    kept = SentContext(0, keeps_events=True)
    kept.sent(as_event("append", [], 2))
    assert not kept.is_kept
