"""Tokenizes the documents of an event for the context log.

Handles documents that are too long as the session asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from router.context import ContextLog, Reserve
from router.documents import ContentDocument
from router.oversized import Oversized, capped, fit
from router.text_input import TextInput
from stream2llm.api.events import OversizedDocument
from stream2llm.api.options import ControlTokens, OversizedDocuments
from stream2llm.api.requests import AppendContext, Document, OpenSession, UpdateContext


@dataclass(frozen=True, slots=True)
class Taken:
    """The documents of one event."""

    documents: tuple[ContentDocument, ...]
    # To report to the client.
    oversized: tuple[OversizedDocument, ...] = ()


class Intake:
    """The document intake of one session."""

    def __init__(
        self, text: TextInput, log: ContextLog, opened: OpenSession, suffix_tokens: int
    ) -> None:
        """`suffix_tokens`: tokens of the suffix given at the open."""
        self._text = text
        self._log = log
        self._action = opened.oversized_documents
        self._parse = opened.control_tokens is ControlTokens.ALL
        self._reserve = Reserve(suffix_tokens, opened.sampling.max_tokens or 1)
        # Tokens kept of each oversized document with an id in the last list.
        self._kept: dict[str, int] = {}

    async def take(self, event: AppendContext | UpdateContext) -> Taken:
        """Tokenizes an event's documents, and fits them where the session asked for that."""
        name: Literal["append", "update"] = (
            "append" if isinstance(event, AppendContext) else "update"
        )
        fails = self._action is OversizedDocuments.FAIL
        room = self._log.room(name, Reserve() if fails else self._reserve)
        documents = await self._text.documents(
            event.documents,
            name,
            room.num_tokens,
            oversized=self._action,
            with_control_tokens=self._parse,
        )
        if fails:  # the log raises
            return Taken(documents)
        fitted, oversized = fit(documents, room, self._action, self._log.num_known)
        result = list(fitted)
        reports = []
        for each in oversized:
            sent = event.documents[each.index]
            result[each.index], what = await self._one(event.sequence, each, sent, fitted)
            reports.append(what)
        return Taken(tuple(result), tuple(self._news(event, reports)))

    def _news(
        self, event: AppendContext | UpdateContext, oversized: Sequence[OversizedDocument]
    ) -> list[OversizedDocument]:
        """Leaves out documents named by id of which the last list kept as much.

        An update names all documents again: for a client that adds one at a time to a
        full context, the number of reports would grow with the square of documents.
        """
        before = self._kept
        now = {each.id: each.kept_tokens for each in oversized if each.id}
        self._kept = now if isinstance(event, UpdateContext) else before | now
        return [
            each
            for each in oversized
            if event.documents[each.index].content is not None
            or before.get(each.id) != each.kept_tokens
        ]

    async def _one(
        self,
        sequence: int,
        oversized: Oversized,
        sent: Document,
        fitted: tuple[ContentDocument, ...],
    ) -> tuple[ContentDocument, OversizedDocument]:
        document = fitted[oversized.index]
        kept_tokens = document.cap or 0
        kept_chars = cut_chars = cut_tokens = None
        if isinstance(sent.content, str) and not self._parse:
            kept_chars = 0
            if kept_tokens:
                kept_tokens, kept_chars = await self._text.cut(sent.content, kept_tokens)
                document = capped(document, kept_tokens)
            cut_chars = len(sent.content) - kept_chars
        else:
            cut_tokens = oversized.num_tokens - kept_tokens
        return document, OversizedDocument(
            sequence=sequence,
            index=oversized.index,
            id=sent.id,
            action="cut" if self._action is OversizedDocuments.CUT else "refuse",
            reason=oversized.reason,
            room_tokens=oversized.room_tokens,
            kept_tokens=kept_tokens,
            kept_chars=kept_chars,
            cut_chars=cut_chars,
            cut_tokens=cut_tokens,
        )
