"""The context log of a session: documents in, splices out. Pure.

The log is the only copy of the context that is needed to restart the session
elsewhere. Appends and updates both end in one operation, "the sequence is now T",
which prefill receives as a splice: tokens to keep, then new tokens.

With the ordering "stable" the documents of an update are laid out in another order
than the update's, such that a longer prefix stays valid; `arrangement` holds the order
of the update, which the model receives at the seal.

A document stays known after an update has left it out, because a later update may name
it by id alone. What a session may make the router remember is limited by
`max_total_tokens`, counted over its whole life; each document counts as one token at
least, so that empty ones are limited too.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from router.arrangement import Arrangement, ListedDocument
from router.documents import ContentDocument, check_documents, num_untokenized
from router.lengths import LengthLimits
from router.splice import Splice
from stream2llm.api.errors import InvalidRequestError, OverloadedError
from stream2llm.api.options import DocumentOrdering
from stream2llm.serving.sessions.prefix import Tokens, as_tokens, common_prefix_len


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """Limits on what one session may send."""

    # For the sequence, and so for the prompt.
    length: LengthLimits
    max_total_tokens: int
    max_documents_per_event: int
    # Documents with a content, over the session's whole life.
    max_documents: int


@dataclass(frozen=True, slots=True)
class Room:
    """Number of tokens that the documents of an event may have together."""

    # Left in the prompt.
    context_tokens: int
    # Left of what the session may send; documents named by id are not sent.
    session_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens that documents with a content may have."""
        return min(self.context_tokens, self.session_tokens)


@dataclass(frozen=True, slots=True)
class Reserve:
    """Tokens that documents must leave free."""

    suffix_tokens: int = 0
    answer_tokens: int = 1


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
        # The prefix and the documents, as one sequence: the cost of an append must not
        # grow with the number of documents.
        self._context = prefix
        self._by_id: dict[str, Tokens] = {}
        self._total_tokens = 0
        self._num_documents = 0
        # Lengths of the last event's parts: the prefix or the old context, then each document.
        self._part_lengths: list[int] = [len(prefix)]
        # The sequence that was sent to prefill.
        self._sent = as_tokens([])
        self._charge(len(prefix))
        self._limits.length.check_prompt(len(prefix))

    @property
    def sequence(self) -> Tokens:
        """The sequence as prefill knows it."""
        return self._sent

    def num_tokens_of(self, num_documents: int) -> int:
        """Returns the tokens of the prefix and the first `num_documents` of an update's list.

        0 in the stable ordering, which may lay them out anywhere.
        """
        if self._arrangement is not None:
            return 0
        return sum(self._part_lengths[: 1 + num_documents])

    @property
    def arrangement(self) -> Arrangement:
        """The documents in the order of the context; empty in the ordering "as given"."""
        return self._arrangement or Arrangement()

    def room(self, event: Literal["append", "update"], reserve: Reserve) -> Room:
        """Returns the tokens that the documents of such an event may have now."""
        before = self._context if event == "append" else self._prefix
        prompt = self._limits.length.max_prompt_before(reserve.answer_tokens)
        return Room(
            max(prompt - reserve.suffix_tokens - len(before), 0),
            max(self._limits.max_total_tokens - self._total_tokens - reserve.suffix_tokens, 0),
        )

    def num_known(self, document_id: str) -> int | None:
        """Returns the tokens of the document with this id; None if there is no such document."""
        tokens = self._by_id.get(document_id)
        return None if tokens is None else len(tokens)

    def begin(self) -> Splice:
        """Returns the splice of the prefix, with which prefill starts."""
        return self._splice_to(self._prefix, len(self._prefix))

    def append(self, documents: Sequence[ContentDocument]) -> Splice:
        """Adds documents at the end."""
        check_documents(documents, "append", self._limits.max_documents_per_event)
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
        """Sets a new document list."""
        check_documents(documents, "update", self._limits.max_documents_per_event)
        new_ids, listed = self._resolve(documents)
        # Before anything is copied: a list may name a long document many times.
        self._check_prompt(len(self._prefix) + sum(len(each.tokens) for each in listed), documents)
        arrangement = self._arrangement and self._arrangement.update(listed)
        laid_out = arrangement.documents if arrangement else listed
        parts = [self._prefix, *(each.tokens for each in laid_out)]
        return self._become(parts, new_ids, documents, arrangement)

    def seal(self, suffix: Tokens, num_bos_tokens: int) -> Splice:
        """Completes the sequence; the client did not send `num_bos_tokens` of `suffix`."""
        num_tokens = len(self._context) + len(suffix)
        if num_tokens <= num_bos_tokens:
            raise InvalidRequestError("context is empty", reason="EMPTY_CONTEXT")
        self._limits.length.check_prompt(num_tokens)
        self._charge(len(suffix))
        return self._splice_to(np.concatenate([self._context, suffix]), len(suffix))

    def _resolve(
        self, documents: Sequence[ContentDocument]
    ) -> tuple[dict[str, Tokens], tuple[ListedDocument, ...]]:
        """Returns the new tokens by id, and the documents in order, with contents.

        An id without content means the latest document sent under that id.
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
        num_more = num_untokenized(sent)
        self._limits.length.check_prompt(num_tokens + num_more, at_least=num_more > 0)

    def _become(
        self,
        parts: list[Tokens],
        new_ids: dict[str, Tokens],
        sent: Sequence[ContentDocument],
        arrangement: Arrangement | None,
    ) -> Splice:
        contents = [document for document in sent if document.tokens is not None]
        self._check_documents_sent(len(contents))
        self._charge(sum(each.num_charged_tokens for each in contents))
        assert not num_untokenized(sent), "a document that cannot fit has failed"
        self._num_documents += len(contents)
        self._by_id.update(new_ids)
        self._arrangement = arrangement
        self._context = np.concatenate(parts)
        self._part_lengths = [len(part) for part in parts]
        return self._splice_to(self._context, sum(each.num_tokens for each in contents))

    def _splice_to(self, sequence: Tokens, num_new_tokens: int) -> Splice:
        keep = common_prefix_len(self._sent, sequence)
        is_empty = keep == len(self._sent) == len(sequence)
        self._sent = sequence
        return Splice(keep, sequence, num_new_tokens, is_empty)

    def _check_documents_sent(self, num_more: int) -> None:
        total = self._num_documents + num_more
        if total > self._limits.max_documents:
            raise OverloadedError(
                f"the session has sent {total} documents over its life; at most"
                f" {self._limits.max_documents} are allowed (max_session_documents)",
                reason="SESSION_DOCUMENTS_EXCEEDED",
                retry_after_s=0,  # a retry would not help
            )

    def _charge(self, num_tokens: int) -> None:
        total = self._total_tokens + num_tokens
        if total > self._limits.max_total_tokens:
            raise OverloadedError(
                f"the session has sent {total} tokens over its life; at most"
                f" {self._limits.max_total_tokens} are allowed (max_session_tokens)",
                reason="SESSION_TOKENS_EXCEEDED",
                retry_after_s=0,  # a retry would not help
            )
        self._total_tokens = total


def _known(by_id: Mapping[str, Tokens], document_id: str, index: int) -> Tokens:
    try:
        return by_id[document_id]
    except KeyError:
        raise InvalidRequestError(
            f"update.documents[{index}] names the unknown document id {document_id!r}",
            reason="UNKNOWN_DOCUMENT",
            field=f"update.documents[{index}].id",
        ) from None
