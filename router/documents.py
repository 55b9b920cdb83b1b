"""The documents of one event, tokenized, and checks that need nothing of the session. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.sessions.prefix import Tokens

MAX_DOCUMENT_ID_CHARS = 256


@dataclass(frozen=True, slots=True)
class ContentDocument:
    """A document of an event, tokenized; `tokens` is None for one sent before."""

    document_id: str
    tokens: Tokens | None
    # Lower bound on tokens beyond `tokens` that were not made: it cannot fit.
    num_untokenized: int = 0
    # Number of its tokens that the context includes; None: all.
    cap: int | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens of its content, at least."""
        return self.num_untokenized + (0 if self.tokens is None else len(self.tokens))

    @property
    def num_charged_tokens(self) -> int:
        """At least 1, so that empty documents are limited; refused ones cost nothing."""
        return self.num_tokens if self.cap is not None else max(self.num_tokens, 1)


def num_untokenized(documents: Sequence[ContentDocument]) -> int:
    """Returns a lower bound on the tokens that were not made of these documents."""
    return sum(document.num_untokenized for document in documents)


def check_documents(documents: Sequence[ContentDocument], event: str, at_most: int) -> None:
    """Raises InvalidRequestError for more than `at_most` documents, and for bad or repeated ids."""
    if len(documents) > at_most:
        raise InvalidRequestError(
            f"{event} has {len(documents)} documents; at most {at_most} are allowed in one event",
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
    # A document without content may occur in an update more than once.
    if document.tokens is None or not document_id:
        return
    if document_id in seen:
        raise InvalidRequestError(
            f"{field} {document_id!r} has a content twice in one event",
            reason="DUPLICATE_DOCUMENT",
            field=field,
        )
    seen.add(document_id)
