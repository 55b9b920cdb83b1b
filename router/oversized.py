"""Refuses or truncates documents that are longer than the room left for them. Pure.

A refused document stays in the list as an empty one, so that the indices of all others,
and its id, mean what the client expects. One that is named by its id is truncated or
refused in this list only; the known document stays whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from router.context import Room
from router.documents import ContentDocument
from stream2llm.api.options import OversizedDocuments
from stream2llm.serving.sessions.prefix import as_tokens

CONTEXT_TOO_LONG, SESSION_TOKENS_EXCEEDED = "CONTEXT_TOO_LONG", "SESSION_TOKENS_EXCEEDED"


@dataclass(frozen=True, slots=True)
class Oversized:
    """A document that does not fit."""

    # Index in the event's list.
    index: int
    # Maximum tokens it could have had.
    room_tokens: int
    # Lower bound.
    num_tokens: int
    reason: str


def fit(
    documents: Sequence[ContentDocument],
    room: Room,
    action: OversizedDocuments,
    num_known: Callable[[str], int | None],
) -> tuple[tuple[ContentDocument, ...], tuple[Oversized, ...]]:
    """Returns the documents as they fit, in order, and those that did not.

    `num_known` returns the tokens of a document sent before, by id.
    """
    left = room
    fitted: list[ContentDocument] = []
    oversized: list[Oversized] = []
    new: dict[str, int] = {}
    for index, document in enumerate(documents):
        is_named = document.tokens is None
        num_tokens = document.num_tokens
        if is_named:
            known = new.get(document.document_id, num_known(document.document_id))
            num_tokens = known or 0  # an unknown id fails the session later
        room_tokens = left.context_tokens if is_named else left.num_tokens
        if num_tokens > room_tokens:
            is_full = left.context_tokens <= room_tokens
            reason = CONTEXT_TOO_LONG if is_full else SESSION_TOKENS_EXCEEDED
            oversized.append(Oversized(index, room_tokens, num_tokens, reason))
            num_tokens = room_tokens if action is OversizedDocuments.CUT else 0
            document = capped(document, num_tokens)
        if not is_named and document.document_id:
            new[document.document_id] = num_tokens
        fitted.append(document)
        left = Room(
            left.context_tokens - num_tokens, left.session_tokens - (0 if is_named else num_tokens)
        )
    return tuple(fitted), tuple(oversized)


def capped(document: ContentDocument, num_tokens: int) -> ContentDocument:
    """Returns the document with its first `num_tokens` tokens only."""
    tokens = document.tokens
    if tokens is not None:
        tokens = as_tokens(tokens[:num_tokens])
    return replace(document, tokens=tokens, num_untokenized=0, cap=num_tokens)
