"""The context that a session has sent, to send it to another router. Pure.

The present document list is enough, where the router's context depends on nothing else:
a list replaces all documents before it, and documents that are appended one by one give
the same tokens as in one event. Documents that an update has left out stay here, and
`completed` puts them into a later update that names them by id.

Where the order or the length of documents depends on the events before (the ordering
"stable", documents refused or cut for their length), the events themselves are kept.

Bounded by the bytes that the session has sent over its life, as the router's own copy is
bounded by their tokens. Beyond the bound nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stream2llm.api.v1 import inference_pb2 as pb

# Upper bound on what a message has beside its documents, and a document beside its content.
_MESSAGE_BYTES = 64
_ITEM_BYTES = 8


class SentContext:
    """What one session has sent."""

    def __init__(self, max_bytes: int, *, keeps_events: bool) -> None:
        self._left_bytes = max_bytes
        self._keeps_events = keeps_events
        self._events: list[pb.StreamGenerateRequest] = []
        # The list as it stands; all have contents.
        self._documents: list[pb.Document] = []
        self._by_id: dict[str, pb.Document] = {}
        self._last_sequence = 1
        self._most_documents = 1
        # Ids that the present router knows; None: all.
        self._known: set[str] | None = None
        self.is_kept = max_bytes > 0

    def sent(self, request: pb.StreamGenerateRequest) -> None:
        """An append or an update is sent, or about to be."""
        self._left_bytes -= request.ByteSize()
        if self._left_bytes < 0:
            self.drop()
        if not self.is_kept:
            return
        if self._keeps_events:
            self._events.append(request)
            return
        if request.HasField("append"):
            self._take(request.append.documents, self._documents)
        else:
            self._documents = []
            self._take(request.update.documents, self._documents)
        self._last_sequence = request.sequence

    def drop(self) -> None:
        """Forgets all of it: it is too much, or is not needed any more."""
        self.is_kept = False
        self._events, self._documents = [], []
        self._by_id.clear()

    def completed(self, update: pb.UpdateContext) -> pb.UpdateContext:
        """Returns the update with the contents that the present router does not have."""
        if self._known is None or not any(map(self._is_missing, update.documents)):
            return update
        return pb.UpdateContext(documents=map(self._with_content, update.documents))

    def again(self, max_message_bytes: int) -> list[pb.StreamGenerateRequest]:
        """Returns the events that bring another router to the same context."""
        if self._keeps_events:
            return list(self._events)
        documents = _named_once(self._documents)
        self._known = {document.id for document in documents}
        requests = [
            pb.StreamGenerateRequest(sequence=1, append=pb.AppendContext(documents=part))
            for part in self._parts(documents, max_message_bytes)
        ]
        if requests:  # the figures include all of them with the last one
            requests[-1].sequence = self._last_sequence
        return requests

    def _take(self, documents: Iterable[pb.Document], present: list[pb.Document]) -> None:
        """Adds documents; one without content is the latest of its id, as at the router."""
        num_before = len(present)
        for document in documents:
            if document.WhichOneof("content") is None:
                # The router refuses an id that is not known.
                document = self._by_id.get(document.id, document)
            elif document.id:
                self._by_id[document.id] = document
                if self._known is not None:
                    self._known.add(document.id)
            present.append(document)
        self._most_documents = max(self._most_documents, len(present) - num_before)

    def _is_missing(self, document: pb.Document) -> bool:
        assert self._known is not None, "asked where some are not known"
        is_reference = document.WhichOneof("content") is None
        return is_reference and document.id in self._by_id and document.id not in self._known

    def _with_content(self, document: pb.Document) -> pb.Document:
        if not self._is_missing(document):
            return document
        whole = pb.Document()
        whole.CopyFrom(self._by_id[document.id])
        whole.ClearField("stays")
        whole.MergeFrom(document)
        return whole

    def _parts(
        self, documents: Iterable[pb.Document], max_message_bytes: int
    ) -> Iterator[list[pb.Document]]:
        """Cuts the list such that no event is larger than one that the router has taken."""
        part: list[pb.Document] = []
        num_bytes = _MESSAGE_BYTES
        for document in documents:
            size = document.ByteSize() + _ITEM_BYTES
            is_full = len(part) == self._most_documents or num_bytes + size > max_message_bytes
            if part and is_full:
                yield part
                part, num_bytes = [], _MESSAGE_BYTES
            part.append(document)
            num_bytes += size
        if part:
            yield part


def _named_once(documents: list[pb.Document]) -> list[pb.Document]:
    """The same contents for appends; an event may give an id once: the last one keeps it."""
    seen = set[str]()
    result = []
    for document in reversed(documents):
        appended = pb.Document()
        appended.CopyFrom(document)
        appended.ClearField("stays")
        if document.id in seen:
            appended.ClearField("id")
        seen.add(document.id)
        result.append(appended)
    return result[::-1]
