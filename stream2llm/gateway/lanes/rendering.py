"""A conversation as the tokens of a prompt, made by the router's own parts.

What a client writes stays text, as at the router: only the template writes control tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from router.arrangement import Arrangement, ListedDocument
from router.encoder import Part, TextEncoder
from router.ranking_note import check_ranking_note, ranking_note
from router.text_input import TextInput
from stream2llm.api.options import DocumentOrdering
from stream2llm.api.requests import ChatPrompt
from stream2llm.gateway.lanes.conversation import Conversation
from stream2llm.serving.sessions.prefix import Tokens

# Pieces that all lanes together remember; each has at most some thousands of characters.
_NUM_REMEMBERED_PIECES = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """The whole sequence of a conversation."""

    # In order; what documents are is a part of its own.
    parts: tuple[Tokens, ...]
    # With the stable ordering; else empty.
    layout: Arrangement = field(default_factory=Arrangement)

    @property
    def num_tokens(self) -> int:
        """Tokens of the sequence."""
        return sum(map(len, self.parts))


class RememberingEncoder(TextEncoder):
    """An encoder that knows the pieces it has encoded last: each request renders them all again."""

    def __init__(self, encoder: TextEncoder) -> None:
        vars(self).update(vars(encoder))
        self.remembered = lru_cache(_NUM_REMEMBERED_PIECES)(encoder.encode_part)

    def encode_part(self, part: Part) -> Tokens:
        return self.remembered(part)


class Rendering:
    """Renders and tokenizes conversations for one model."""

    def __init__(self, text: TextInput) -> None:
        self._text = text

    async def rendered(
        self,
        conversation: Conversation,
        first: ChatPrompt,
        layout: Arrangement,
        *,
        begins_answer: bool,
    ) -> Rendered:
        """Returns the sequence after that of `first`, up to the answer with `begins_answer`.

        `layout` is the arrangement of the documents so far. What stands behind the documents
        is left out while more of them may come.
        """
        chat = conversation.chat(first, begins_answer=begins_answer)
        if conversation.slot is None:
            if not chat.messages and not begins_answer:
                return Rendered(())
            frame = await self._text.frame(chat)
            return Rendered((frame.prefix,))
        frame = await self._text.frame(chat)
        documents, layout = await self._documents(conversation, layout)
        if not begins_answer and not conversation.is_answered:
            return Rendered((frame.prefix, *documents), layout)
        note = await self._note(conversation, layout)
        return Rendered((frame.prefix, *documents, *note, frame.suffix), layout)

    async def _documents(
        self, conversation: Conversation, layout: Arrangement
    ) -> tuple[list[Tokens], Arrangement]:
        listed = [
            ListedDocument(each.id, await self._text.content(each.text or "", "input"))
            for each in conversation.documents
        ]
        if conversation.ordering is DocumentOrdering.AS_GIVEN:
            return [each.tokens for each in listed], Arrangement()
        layout = layout.update(listed)
        return [each.tokens for each in layout.documents], layout

    async def _note(self, conversation: Conversation, layout: Arrangement) -> list[Tokens]:
        check_ranking_note(conversation.ranking_note, conversation.ordering)
        text = ranking_note(conversation.ranking_note, layout)
        return [await self._text.content(text, "ranking_note")] if text else []
