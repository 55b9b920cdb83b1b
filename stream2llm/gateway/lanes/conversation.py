"""A conversation that grows response by response, and the documents in its context slot. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.options import DocumentOrdering
from stream2llm.api.requests import DEFAULT_CONTEXT_SLOT, ChatMessage, ChatPrompt, ChatTemplate


@dataclass(frozen=True, slots=True)
class SlotDocument:
    """A document of the context slot."""

    # Empty: it cannot be named later.
    id: str
    # None: the one that was sent before under this id.
    text: str | None


@dataclass(frozen=True, slots=True)
class Given:
    """The turns and documents that one request adds."""

    turns: tuple[ChatMessage, ...] = ()
    documents: tuple[SlotDocument, ...] = ()
    # The text of the slot; None: as before.
    slot: str | None = None
    # None: as before.
    ordering: DocumentOrdering | None = None
    # The template of `router/ranking_note.py`; None: as before.
    ranking_note: str | None = None

    @property
    def num_chars(self) -> int:
        """Characters to remember."""
        return sum(map(_num_chars, self.turns)) + sum(
            len(each.text or "") for each in self.documents
        )


@dataclass(frozen=True, slots=True)
class Conversation:
    """Everything up to one response; instructions are not part of it."""

    turns: tuple[ChatMessage, ...] = ()
    # All with a text.
    documents: tuple[SlotDocument, ...] = ()
    # What stands for the documents in one of the turns; None: there are none.
    slot: str | None = None
    ordering: DocumentOrdering = DocumentOrdering.AS_GIVEN
    # None: the router's own.
    ranking_note: str | None = None
    # Before the first answer the text behind the documents is held back: more may come.
    is_answered: bool = False

    def with_input(self, given: Given, known: Mapping[str, str]) -> Conversation:
        """Adds what a request brings; `known` has the texts of documents sent so far, by id.

        Raises InvalidRequestError for a document that is not known.
        """
        slot = given.slot if given.slot is not None else self.slot
        if slot is None and given.documents:
            slot = DEFAULT_CONTEXT_SLOT
        documents = tuple(_resolved(each, known) for each in given.documents)
        return replace(
            self,
            turns=(*self.turns, *given.turns),
            documents=(*self.documents, *documents),
            slot=slot,
            ordering=given.ordering or self.ordering,
            ranking_note=self.ranking_note if given.ranking_note is None else given.ranking_note,
        )

    def with_answer(self, turns: Sequence[ChatMessage]) -> Conversation:
        """Adds the turns of the model's answer."""
        return replace(self, turns=(*self.turns, *turns), is_answered=True)

    def chat(self, first: ChatPrompt, *, begins_answer: bool) -> ChatPrompt:
        """The conversation after that of `first`, with its tools and variables of the template."""
        chat = replace(
            first,
            messages=(*first.messages, *self.turns),
            add_generation_prompt=begins_answer,
        )
        if self.slot is None:
            return chat
        return ChatTemplate(
            chat.messages,
            tools=chat.tools,
            chat_template_kwargs=chat.chat_template_kwargs,
            add_generation_prompt=begins_answer,
            context_slot=self.slot,
        )


def _num_chars(turn: ChatMessage) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in turn.tool_calls)
    return sum(map(len, turn.texts)) + calls + len(turn.reasoning)


def texts_by_id(known: Mapping[str, str], more: Sequence[SlotDocument]) -> dict[str, str]:
    """The texts of documents by id; the latest of an id counts."""
    return {**known, **{each.id: each.text for each in more if each.id and each.text is not None}}


def _resolved(document: SlotDocument, known: Mapping[str, str]) -> SlotDocument:
    if document.text is not None:
        return document
    if document.id not in known:
        raise InvalidRequestError(
            f"input names the document {document.id!r}, which this lane has not been sent",
            reason="UNKNOWN_DOCUMENT",
            field="input",
        )
    return SlotDocument(document.id, known[document.id])
