"""The context log of a session: documents in, splices out. Pure.

The log is the only copy of the context that the system needs to start again
elsewhere. Appends and updates both end in one operation, "the sequence is now
T", which is told to prefill as a splice: keep so many tokens, then these.

With the ordering "stable" the documents of an update stand in another order than
that of the update, such that more of the sequence stays the same; `arrangement`
has the order of the update, for the model to be told at the seal.

A document stays known after an update has left it out, because a later update
may name it by id alone. What a session may make us remember is bounded by
`max_total_tokens`, counted over its whole life; each document counts as one
token at least, so that empty ones are bounded too.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from router.arrangement import Arrangement, ListedDocument
from router.lengths import LengthLimits
from stream2llm.api.errors import InvalidRequestError, OverloadedError
from stream2llm.api.ordering import DocumentOrdering
from stream2llm.serving.prefix import Tokens, as_tokens, common_prefix_len

MAX_DOCUMENT_ID_CHARS = 256


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """What one session may send."""

    # Of the sequence as it stands, and so of the prompt it may become.
    length: LengthLimits
    max_total_tokens: int
    max_documents_per_event: int
    # With a content, over the session's whole life.
    max_documents: int


@dataclass(frozen=True, slots=True)
class ContentDocument:
    """A document as an event carries it, tokenized; None names one sent before."""

    document_id: str
    tokens: Tokens | None
    # It has at least so many tokens more, which were not made: it cannot fit.
    num_untold: int = 0
    # Only so many of its tokens stand in the context; None: all.
    cap: int | None = None

    @property
    def num_tokens(self) -> int:
        """Of its content, at least."""
        return self.num_untold + (0 if self.tokens is None else len(self.tokens))


@dataclass(frozen=True, slots=True)
class Room:
    """How many tokens the documents of an event may have together."""

    # Of the prompt.
    context_tokens: int
    # Of all that the session may send; documents named by id are not sent.
    session_tokens: int

    @property
    def num_tokens(self) -> int:
        """For documents with a content."""
        return min(self.context_tokens, self.session_tokens)


@dataclass(frozen=True, slots=True)
class Reserve:
    """What documents leave free, in tokens."""

    suffix_tokens: int = 0
    answer_tokens: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Splice:
    """The sequence is its first `keep_tokens` tokens, then `tail`."""

    keep_tokens: int
    tail: Tokens
    # Tokens of content that the event brought.
    num_new_tokens: int
    # Whether the sequence is the same as before.
    is_empty: bool

    def then(self, following: Splice, sequence: Tokens) -> Splice:
        """Both as one; `sequence` is what the following one makes."""
        keep_tokens = min(self.keep_tokens, following.keep_tokens)
        return Splice(
            keep_tokens,
            sequence[keep_tokens:],
            self.num_new_tokens + following.num_new_tokens,
            self.is_empty and following.is_empty,
        )


class ContextLog:
    """One session's context. Every method either succeeds or changes nothing."""

    def __init__(
        self,
        prefix: Tokens,
        limits: ContextLimits,
        ordering: DocumentOrdering = DocumentOrdering.AS_GIVEN,
    ) -> None:
        self._limits = limits
        is_stable = ordering is DocumentOrdering.STABLE
        self._arrangement = Arrangement() if is_stable else None
        self._prefix = prefix
        # The prefix and the documents, as one sequence: an append must not cost
        # more the more documents there are.
        self._context = prefix
        self._by_id: dict[str, Tokens] = {}
        self._total_tokens = 0
        self._num_documents = 0
        # Of the last event's parts: the prefix or what was there, then each document.
        self._part_lengths: list[int] = [len(prefix)]
        # What prefill has been told; nothing yet.
        self._told = as_tokens([])
        self._charge(len(prefix))
        self._limits.length.check_prompt(len(prefix))

    @property
    def sequence(self) -> Tokens:
        """The sequence as prefill knows it."""
        return self._told

    def num_tokens_of(self, num_documents: int) -> int:
        """After an update: of the prefix and so many leading documents of the list.

        0 in the stable ordering, where they may stand anywhere.
        """
        if self._arrangement is not None:
            return 0
        return sum(self._part_lengths[: 1 + num_documents])

    @property
    def arrangement(self) -> Arrangement:
        """The documents as they stand; without any where they stand as given."""
        return self._arrangement or Arrangement()

    def room(self, event: Literal["append", "update"], reserve: Reserve) -> Room:
        """For the documents of such an event, as things stand."""
        before = self._context if event == "append" else self._prefix
        prompt = self._limits.length.max_prompt_before(reserve.answer_tokens)
        return Room(
            max(prompt - reserve.suffix_tokens - len(before), 0),
            max(self._limits.max_total_tokens - self._total_tokens - reserve.suffix_tokens, 0),
        )

    def num_known(self, document_id: str) -> int | None:
        """Tokens of the document that this id names; None: it names none."""
        tokens = self._by_id.get(document_id)
        return None if tokens is None else len(tokens)

    def begin(self) -> Splice:
        """The prefix, for prefill to start with."""
        return self._tell(self._prefix, len(self._prefix))

    def append(self, documents: Sequence[ContentDocument]) -> Splice:
        """More documents at the end."""
        _check_documents(documents, "append", self._limits)
        for index, document in enumerate(documents):
            if document.tokens is None:
                raise InvalidRequestError(
                    f"append.documents[{index}] has no content; only an update may name"
                    " a document by id alone",
                    reason="DOCUMENT_WITHOUT_CONTENT",
                    field=f"append.documents[{index}].content",
                )
        new_ids, added = self._resolve(documents)
        parts = [self._context, *(each.tokens for each in added)]
        self._check_prompt(sum(map(len, parts)), documents)
        arrangement = self._arrangement and self._arrangement.append(added)
        return self._become(parts, new_ids, documents, arrangement)

    def update(self, documents: Sequence[ContentDocument]) -> Splice:
        """The new document list."""
        _check_documents(documents, "update", self._limits)
        new_ids, listed = self._resolve(documents)
        # Before anything is read or copied: a list may name a long document often.
        self._check_prompt(len(self._prefix) + sum(len(each.tokens) for each in listed), documents)
        arrangement = self._arrangement and self._arrangement.update(listed)
        laid_out = arrangement.documents if arrangement else listed
        parts = [self._prefix, *(each.tokens for each in laid_out)]
        return self._become(parts, new_ids, documents, arrangement)

    def seal(self, suffix: Tokens, num_bos_tokens: int) -> Splice:
        """The final sequence; `num_bos_tokens` of it the client did not send."""
        num_tokens = len(self._context) + len(suffix)
        if num_tokens <= num_bos_tokens:
            raise InvalidRequestError("context is empty", reason="EMPTY_CONTEXT")
        self._limits.length.check_prompt(num_tokens)
        self._charge(len(suffix))
        return self._tell(np.concatenate([self._context, suffix]), len(suffix))

    def _resolve(
        self, documents: Sequence[ContentDocument]
    ) -> tuple[dict[str, Tokens], tuple[ListedDocument, ...]]:
        """What is new under which id, and the documents in order, with contents.

        A document named by id alone is the latest one sent under that id.
        """
        new_ids: dict[str, Tokens] = {}
        by_id = ChainMap(new_ids, self._by_id)
        resolved = []
        for index, document in enumerate(documents):
            tokens = document.tokens
            if tokens is None:
                tokens = _known(by_id, document.document_id, index)
            elif document.document_id:
                by_id[document.document_id] = tokens
            resolved.append(ListedDocument(document.document_id, tokens[: document.cap]))
        return new_ids, tuple(resolved)

    def _check_prompt(self, num_tokens: int, sent: Sequence[ContentDocument]) -> None:
        num_untold = _num_untold(sent)
        self._limits.length.check_prompt(num_tokens + num_untold, at_least=num_untold > 0)

    def _become(
        self,
        parts: list[Tokens],
        new_ids: dict[str, Tokens],
        sent: Sequence[ContentDocument],
        arrangement: Arrangement | None,
    ) -> Splice:
        contents = [document for document in sent if document.tokens is not None]
        self._check_documents_sent(len(contents))
        self._charge(sum(_charged_tokens(each) for each in contents))
        assert not _num_untold(sent), "a document that cannot fit has failed"
        self._num_documents += len(contents)
        self._by_id.update(new_ids)
        self._arrangement = arrangement
        self._context = np.concatenate(parts)
        self._part_lengths = [len(part) for part in parts]
        return self._tell(self._context, sum(each.num_tokens for each in contents))

    def _tell(self, sequence: Tokens, num_new_tokens: int) -> Splice:
        keep = common_prefix_len(self._told, sequence)
        is_empty = keep == len(self._told) == len(sequence)
        self._told = sequence
        return Splice(keep, sequence[keep:], num_new_tokens, is_empty)

    def _check_documents_sent(self, num_more: int) -> None:
        total = self._num_documents + num_more
        if total > self._limits.max_documents:
            raise OverloadedError(
                f"the session has sent {total} documents over its life; at most"
                f" {self._limits.max_documents} are allowed (max_session_documents)",
                reason="SESSION_DOCUMENTS_EXCEEDED",
                retry_after_s=0,  # trying again does not help
            )

    def _charge(self, num_tokens: int) -> None:
        total = self._total_tokens + num_tokens
        if total > self._limits.max_total_tokens:
            raise OverloadedError(
                f"the session has sent {total} tokens over its life; at most"
                f" {self._limits.max_total_tokens} are allowed (max_session_tokens)",
                reason="SESSION_TOKENS_EXCEEDED",
                retry_after_s=0,  # trying again does not help
            )
        self._total_tokens = total


def _charged_tokens(document: ContentDocument) -> int:
    """One at least, so that empty documents are bounded; what was refused costs nothing."""
    return document.num_tokens if document.cap is not None else max(document.num_tokens, 1)


def _num_untold(documents: Sequence[ContentDocument]) -> int:
    return sum(document.num_untold for document in documents)


def _known(by_id: Mapping[str, Tokens], document_id: str, index: int) -> Tokens:
    try:
        return by_id[document_id]
    except KeyError:
        raise InvalidRequestError(
            f"update.documents[{index}] names the unknown document id {document_id!r}",
            reason="UNKNOWN_DOCUMENT",
            field=f"update.documents[{index}].id",
        ) from None


def _check_documents(
    documents: Sequence[ContentDocument], event: str, limits: ContextLimits
) -> None:
    if len(documents) > limits.max_documents_per_event:
        raise InvalidRequestError(
            f"{event} has {len(documents)} documents; at most"
            f" {limits.max_documents_per_event} are allowed in one event",
            reason="TOO_MANY_DOCUMENTS",
            field=f"{event}.documents",
        )
    seen: set[str] = set()
    for index, document in enumerate(documents):
        _check_id(document, f"{event}.documents[{index}].id", seen)


def _check_id(document: ContentDocument, field: str, seen: set[str]) -> None:
    document_id = document.document_id
    if len(document_id) > MAX_DOCUMENT_ID_CHARS:
        raise InvalidRequestError(
            f"{field} has {len(document_id)} characters; at most {MAX_DOCUMENT_ID_CHARS}"
            " are allowed",
            reason="BAD_DOCUMENT_ID",
            field=field,
        )
    # A document named by id alone may stand in an update more than once.
    if document.tokens is None or not document_id:
        return
    if document_id in seen:
        raise InvalidRequestError(
            f"{field} {document_id!r} has a content twice in one event",
            reason="DUPLICATE_DOCUMENT",
            field=field,
        )
    seen.add(document_id)
