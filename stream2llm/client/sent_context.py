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

from collections.abc import Iterable, Iterator, Sequence

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
        event = request.append if request.HasField("append") else request.update
        if self._known is not None:
            self._known.update(each.id for each in event.documents if _has_content(each))
        if self._left_bytes < 0:
            self.drop()
        if not self.is_kept:
            return
        if self._keeps_events:
            self._events.append(request)
            return
        if request.HasField("update"):
            self._documents = []
        self._take(event.documents)
        self._last_sequence = request.sequence

    def drop(self) -> None:
        """Forgets what another router would need: it is too much, or not needed any more."""
        self.is_kept = False
        self._events, self._documents = [], []
        known = self._by_id if self._known is None else self._known
        self._by_id = {name: each for name, each in self._by_id.items() if name not in known}

    def completed(self, update: pb.UpdateContext) -> pb.UpdateContext:
        """Returns the update with the contents that the present router does not have."""
        if not any(map(self._is_missing, update.documents)):
            return update
        own_ids = {each.id for each in update.documents if _has_content(each)}
        here = set[str]()
        result = []
        for document in update.documents:
            if self._is_missing(document) and document.id not in here:
                document = self._with_content(document)
                if document.id in own_ids:  # the event may give an id only once
                    document.ClearField("id")
            if _has_content(document):
                here.add(document.id)
            result.append(document)
        return pb.UpdateContext(documents=result)

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

    def _take(self, documents: Sequence[pb.Document]) -> None:
        """Adds documents; one without content is the latest of its id, as at the router."""
        for document in documents:
            if not _has_content(document):
                # The router refuses an id that is not known.
                document = self._by_id.get(document.id, document)
            elif document.id:
                self._by_id[document.id] = document
            self._documents.append(document)
        self._most_documents = max(self._most_documents, len(documents))

    def _is_missing(self, document: pb.Document) -> bool:
        """Whether it names one that the present router does not have, and this client has."""
        if self._known is None or _has_content(document):
            return False
        return document.id in self._by_id and document.id not in self._known

    def _with_content(self, document: pb.Document) -> pb.Document:
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


def parted(seal: pb.SealContext) -> tuple[pb.StreamGenerateRequest | None, pb.SealContext]:
    """The change that a seal brings, as an event of its own, and the seal without it."""
    bare = pb.SealContext()
    if seal.HasField("suffix"):
        bare.suffix.CopyFrom(seal.suffix)
    match seal.WhichOneof("change"):
        case "append":
            return pb.StreamGenerateRequest(append=seal.append), bare
        case "update":
            return pb.StreamGenerateRequest(update=seal.update), bare
    return None, bare


def _has_content(document: pb.Document) -> bool:
    return document.WhichOneof("content") is not None


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
