"""What a session has of a token sequence, and what to send to make it another one. Pure.

A session's documents are pieces of the sequence, which it can be told again by their ids.
So only new content is sent, and again at most a part of the one piece that a change cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from stream2llm.api.requests import Document
from stream2llm.client.inputs import DocumentRef
from stream2llm.serving.sessions.prefix import Tokens, as_tokens, common_prefix_len


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of the sequence, as one document of the session."""

    id: str
    tokens: Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """What one session has been sent."""

    # The present sequence.
    pieces: tuple[Piece, ...] = ()
    # Ids of all pieces ever sent, by their contents.
    ids: Mapping[bytes, str] = field(default_factory=dict)

    @property
    def sequence(self) -> Tokens:
        """The sequence as it stands."""
        return joined([piece.tokens for piece in self.pieces])


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """One event for the session, and what it has been sent afterwards."""

    after: Sent
    # Documents to append, or with `is_update` the whole new list.
    documents: tuple[Document, ...]
    is_update: bool
    # Tokens of the old sequence that stay valid, and that do not.
    num_kept: int
    num_invalidated: int

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to send."""
        return not self.is_update and not self.documents


def joined(parts: Sequence[Tokens]) -> Tokens:
    """The parts as one sequence."""
    return np.concatenate([as_tokens([]), *parts])


def change_to(sent: Sent, parts: Sequence[Tokens]) -> Change:
    """Makes the session's sequence that of `parts`, which are reused where they were sent."""
    old, new = sent.sequence, joined(parts)
    num_kept = common_prefix_len(old, new)
    kept = tuple(_within(sent.pieces, num_kept))
    begin = sum(len(piece.tokens) for piece in kept)
    ids = dict(sent.ids)
    more = [_piece(tokens, ids) for tokens in _behind(parts, begin)]
    after = Sent((*kept, *(piece for piece, _ in more)), ids)
    documents = [
        Document(piece.tokens.tolist(), piece.id) if is_new else DocumentRef(piece.id)
        for piece, is_new in more
    ]
    is_update = num_kept < len(old) or not all(is_new for _, is_new in more)
    if is_update:
        documents = [*(DocumentRef(piece.id) for piece in kept), *documents]
    return Change(after, tuple(documents), is_update, num_kept, len(old) - num_kept)


def _within(pieces: Sequence[Piece], num_tokens: int) -> Iterator[Piece]:
    """The first pieces that lie within the first tokens as a whole."""
    end = 0
    for piece in pieces:
        end += len(piece.tokens)
        if end > num_tokens:
            return
        yield piece


def _behind(parts: Sequence[Tokens], begin: int) -> Iterator[Tokens]:
    """The parts from a token of their sequence on; no empty ones."""
    at = 0
    for part in parts:
        left = part[max(begin - at, 0) :]
        at += len(part)
        if len(left):
            yield left


def _piece(tokens: Tokens, ids: dict[bytes, str]) -> tuple[Piece, bool]:
    """The piece with these tokens, and whether the session has not been sent it yet."""
    digest = blake2b(tokens.tobytes(), digest_size=16).digest()
    is_new = digest not in ids
    return Piece(ids.setdefault(digest, f"p{len(ids)}"), tokens), is_new
