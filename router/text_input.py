"""Tokenizes the contents of events.

The caller keeps the order within a session: it awaits one event before the next. A text
that cannot fit is tokenized only as far as is needed to find that out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from router import conversation
from router.bad_words import token_sequences
from router.chat_template import TemplateText
from router.documents import ContentDocument
from router.encoder import PIECE_CHARS, Part, Piece
from router.part_encoder import SHORT_CHARS, PartEncoder
from router.tokenizer import ModelTokenizer
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.options import ControlTokens, OversizedDocuments
from stream2llm.api.requests import (
    ChatPrompt,
    ChatTemplate,
    Content,
    Document,
    PlainTemplate,
)
from stream2llm.api.sampling import BadWord, TokenSequence
from stream2llm.serving.sessions.prefix import Tokens, as_tokens


@dataclass(frozen=True, slots=True)
class Frame:
    """The tokens around the documents."""

    prefix: Tokens
    suffix: Tokens
    # Tokens of the prefix that the client did not send.
    num_bos_tokens: int
    # A chat template has its own suffix: a seal cannot replace it.
    is_chat: bool


@dataclass(slots=True)
class _Room:
    """How many tokens the documents of an event may still have."""

    num_tokens: int
    oversized: OversizedDocuments
    # A document fails the session, so later ones do not matter.
    is_over: bool = field(default=False, init=False)

    def take(self, tokens: Tokens, num_untokenized: int) -> None:
        """Accounts for a document of `tokens` and at least `num_untokenized` more."""
        if len(tokens) + num_untokenized <= self.num_tokens:
            self.num_tokens -= len(tokens)
        elif self.oversized is OversizedDocuments.CUT:
            self.num_tokens = 0
        else:
            self.is_over = self.oversized is OversizedDocuments.FAIL


class TextInput:
    """Tokenizes templates and documents."""

    def __init__(self, tokenizer: ModelTokenizer, max_model_len: int) -> None:
        self.tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._encoding = PartEncoder(tokenizer.encoder)

    def close(self) -> None:
        """Waits for tokenizing under way."""
        self._encoding.close()

    async def frame(
        self,
        template: PlainTemplate | ChatPrompt,
        control_tokens: ControlTokens = ControlTokens.NONE,
        last_tokens: int | None = None,
    ) -> Frame:
        """Returns the tokens around the documents; of the prefix, at most the `last_tokens`."""
        if isinstance(template, PlainTemplate):
            parse = control_tokens is not ControlTokens.NONE
            return await self._plain_frame(template, last_tokens, parse=parse)
        return await self._chat_frame(template, control_tokens, last_tokens)

    async def bad_words(self, words: Sequence[BadWord]) -> tuple[TokenSequence, ...]:
        """Returns the token sequences of all words; raises as `token_sequences`."""
        encoder, num_chars = self.tokenizer.encoder, sum(map(len, words))
        return await self._encoding.run(num_chars, lambda: token_sequences(words, encoder))

    async def content(
        self,
        content: Content,
        name: str,
        *,
        is_first: bool = False,
        with_control_tokens: bool = False,
        last_tokens: int | None = None,
    ) -> Tokens:
        """Tokenizes one content, with nothing around it but BOS at the beginning of a prompt.

        `name` is its field in the request. With `last_tokens`, returns at most so many, from its end.
        """
        if not isinstance(content, str):
            return _last(self.tokenizer.check_ids(content, f"{name}.token_ids"), last_tokens)
        _check_encodable(content, name)
        parse = with_control_tokens
        parts = await self._encoding.run(
            len(content),
            lambda: self.tokenizer.parts(content, is_first=is_first, with_control_tokens=parse),
        )
        return await self._all(parts, name, last_tokens)

    async def documents(
        self,
        documents: Sequence[Document],
        event: str,
        room_tokens: int,
        *,
        oversized: OversizedDocuments = OversizedDocuments.FAIL,
        with_control_tokens: bool = False,
    ) -> tuple[ContentDocument, ...]:
        """Tokenizes the documents of one event, each on its own.

        Documents with more than `room_tokens` tokens, less those before them, are cut to their
        beginning.
        """
        room = _Room(room_tokens, oversized)
        num_chars = sum(map(_num_chars, documents))
        done: list[ContentDocument] = []
        for group in _groups(documents):
            names = [f"{event}.documents[{len(done) + i}]" for i in range(len(group))]
            if _num_chars(group[0]) > SHORT_CHARS:
                done.append(
                    await self._long_document(group[0], names[0], room, with_control_tokens)
                )
                continue
            done += await self._encoding.run(
                num_chars,
                lambda group=group, names=names: [  # type: ignore[misc]
                    self._short_document(each, name, room, with_control_tokens)
                    for each, name in zip(group, names, strict=True)
                ],
            )
        return tuple(done)

    async def cut(self, text: str, max_tokens: int) -> tuple[int, int]:
        """Returns the tokens and characters of a document's longest prefix of at most
        `max_tokens` tokens that ends between two characters."""
        num_tokens = num_chars = 0
        for part in self.tokenizer.encoder.parts(text):
            assert isinstance(part, Piece), "a document is text"
            spans = await self._encoding.run(
                len(text),
                lambda part=part: self.tokenizer.encoder.spans(part),  # type: ignore[misc]
            )
            left = max_tokens - num_tokens
            if len(spans) > left:
                while left and spans[left][0] < spans[left - 1][1]:
                    left -= 1
                return num_tokens + left, num_chars + (spans[left - 1][1] if left else 0)
            num_tokens += len(spans)
            num_chars += len(part.text)
        return num_tokens, num_chars

    # -- around the documents ------------------------------------------------------

    async def _plain_frame(
        self, template: PlainTemplate, last_tokens: int | None, *, parse: bool
    ) -> Frame:
        prefix = await self.content(
            template.prefix,
            "prefix",
            is_first=True,
            with_control_tokens=parse,
            last_tokens=last_tokens,
        )
        suffix = await self.content(template.suffix, "suffix", with_control_tokens=parse)
        head = self.tokenizer.encoder.head
        has_head = isinstance(template.prefix, str) and np.array_equal(prefix[: len(head)], head)
        return Frame(prefix, suffix, len(head) if has_head else 0, is_chat=False)

    async def _chat_frame(
        self, chat: ChatPrompt, control_tokens: ControlTokens, last_tokens: int | None
    ) -> Frame:
        left, right = await self._encoding.run(
            conversation.num_chars(chat), lambda: self._chat_parts(chat, control_tokens)
        )
        name = "chat.messages"
        prefix = await self._all(left, name, last_tokens)
        return Frame(prefix, await self._all(right, name), 0, is_chat=True)

    def _chat_parts(
        self, chat: ChatPrompt, control_tokens: ControlTokens
    ) -> tuple[list[Part], list[Part]]:
        if isinstance(chat, ChatTemplate):
            left, right = self.tokenizer.chat.around_context(chat, control_tokens)
        else:
            left, right = self.tokenizer.chat.prompt(chat, control_tokens), TemplateText("")
        for text in (left, right):
            _check_encodable(text, "chat.messages")
        written = self.tokenizer.encoder.parts_written
        return written(left, is_first=True), written(right, is_first=False)

    async def _all(
        self, parts: Sequence[Part], name: str, last_tokens: int | None = None
    ) -> Tokens:
        """Returns the tokens of all parts, or the last ones.

        Raises InvalidRequestError when they have more tokens than the model takes.
        """
        if last_tokens is not None and last_tokens < self._max_model_len:
            return await self._encoding.last(parts, last_tokens)
        tokens, num_untokenized = await self._encoding.first(parts, self._max_model_len)
        if num_untokenized:
            raise InvalidRequestError(
                f"{name} has at least {len(tokens) + num_untokenized} tokens; the model takes at most"
                f" {self._max_model_len} (max_model_len)",
                reason="CONTEXT_TOO_LONG",
                field=name,
            )
        return tokens

    # -- documents ---------------------------------------------------------------

    def _short_document(
        self, document: Document, name: str, room: _Room, parse: bool
    ) -> ContentDocument:
        content = document.content
        if content is None:
            return ContentDocument(document.id, None)
        if room.is_over:
            return ContentDocument(document.id, _NOTHING, num_untokenized=1)
        if isinstance(content, str):
            _check_encodable(content, name)
            parts = self.tokenizer.parts(content, with_control_tokens=parse)
            tokens = self.tokenizer.encoder.encode(parts)
        else:
            tokens = self.tokenizer.check_ids(content, name)
        room.take(tokens, 0)
        return ContentDocument(document.id, tokens)

    async def _long_document(
        self, document: Document, name: str, room: _Room, parse: bool
    ) -> ContentDocument:
        text = document.content
        assert isinstance(text, str), "ids are never long"
        if room.is_over:
            return ContentDocument(document.id, _NOTHING, num_untokenized=1)
        _check_encodable(text, name)
        # The beginning of a document to truncate is needed in any case.
        too_many = 0 if room.oversized is OversizedDocuments.CUT else self._least_tokens(text)
        if too_many > room.num_tokens:
            tokens, num_untokenized = _NOTHING, too_many
        else:
            parts = await self._encoding.run(
                len(text), lambda: self.tokenizer.parts(text, with_control_tokens=parse)
            )
            tokens, num_untokenized = await self._encoding.first(parts, room.num_tokens)
        room.take(tokens, num_untokenized)
        return ContentDocument(document.id, tokens, num_untokenized)

    def _least_tokens(self, text: str) -> int:
        """Returns a lower bound on the text's tokens; 0 where only tokenizing can give one."""
        max_token_bytes = self.tokenizer.encoder.max_token_bytes
        return -(-len(text.encode()) // max_token_bytes) if max_token_bytes else 0


_NOTHING = as_tokens([])


def _last(tokens: Tokens, num_tokens: int | None) -> Tokens:
    last: Tokens = tokens if num_tokens is None else tokens[-num_tokens:]
    return last


def _groups(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """Yields consecutive documents that are tokenized in one go; a long one is alone."""
    group: list[Document] = []
    num_chars = 0
    for document in documents:
        more = _num_chars(document)
        if group and num_chars + more > PIECE_CHARS:
            yield group
            group, num_chars = [], 0
        group.append(document)
        num_chars += more
    if group:
        yield group


def _check_encodable(text: str, name: str) -> None:
    # Protobuf text is valid UTF-8; only a Python caller can pass a lone surrogate.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{name} is not valid Unicode: {error.reason}", reason="BAD_TEXT", field=name
        ) from error


def _num_chars(document: Document) -> int:
    # Checking token ids costs next to nothing.
    return len(document.content) if isinstance(document.content, str) else 0
