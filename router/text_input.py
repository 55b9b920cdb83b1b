"""Tokenizes the contents of events, off the event loop if they are long.

Owns the threads for it. The caller keeps the order within a session: it awaits one event
before the next. Long texts use a separate thread, piece by piece in turn, so they do not
delay short ones, and delay each other evenly. A text that cannot fit is tokenized only
as far as is needed to find that out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from router.context import ContentDocument
from router.encoder import PIECE_CHARS, Part, Piece
from router.tokenizer import ModelTokenizer, split_chat
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.requests import (
    DEFAULT_CONTEXT_SLOT,
    ChatPrompt,
    ChatTemplate,
    Content,
    Document,
    PlainTemplate,
)
from stream2llm.api.text_options import ControlTokens, OversizedDocuments
from stream2llm.serving.prefix import Tokens, as_tokens

T = TypeVar("T")
# Below this many characters, tokenizing takes less time than a thread switch under load.
_INLINE_CHARS = 2_000
# Above this many, it takes too long for others to wait for it.
_SHORT_CHARS = 2 * PIECE_CHARS
_NUM_SHORT_THREADS = 2


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
        self._short = ThreadPoolExecutor(_NUM_SHORT_THREADS, thread_name_prefix="tokenize")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="tokenize-long")

    def close(self) -> None:
        """Waits for tokenizing under way."""
        for threads in (self._short, self._long):
            threads.shutdown(cancel_futures=True)

    async def frame(
        self,
        template: PlainTemplate | ChatTemplate | ChatPrompt,
        control_tokens: ControlTokens = ControlTokens.NONE,
        *,
        add_generation_prompt: bool = True,
    ) -> Frame:
        """Returns the tokens around the documents.

        Those of a chat end, with `add_generation_prompt`, where the model's answer begins.
        """
        parse = control_tokens is not ControlTokens.NONE
        if isinstance(template, PlainTemplate):
            return await self._plain_frame(template, parse=parse)
        return await self._chat_frame(template, parse=parse, begin_answer=add_generation_prompt)

    async def content(
        self,
        content: Content,
        name: str,
        *,
        is_first: bool = False,
        with_control_tokens: bool = False,
    ) -> Tokens:
        """Tokenizes one content, with nothing around it but BOS at the beginning of a prompt.

        `name` is its field in the request.
        """
        if not isinstance(content, str):
            return self.tokenizer.check_ids(content, f"{name}.token_ids")
        _check_encodable(content, name)
        parse = with_control_tokens
        parts = await self._run(
            len(content),
            lambda: self.tokenizer.parts(content, is_first=is_first, with_control_tokens=parse),
        )
        return await self._all(parts, name)

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

        Of documents with more than `room_tokens` tokens, less those before them, only the
        beginning is returned.
        """
        room = _Room(room_tokens, oversized)
        num_chars = sum(map(_num_chars, documents))
        done: list[ContentDocument] = []
        for group in _groups(documents):
            names = [f"{event}.documents[{len(done) + i}]" for i in range(len(group))]
            if _num_chars(group[0]) > _SHORT_CHARS:
                done.append(
                    await self._long_document(group[0], names[0], room, with_control_tokens)
                )
                continue
            done += await self._run(
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
            spans = await self._run(
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

    async def _plain_frame(self, template: PlainTemplate, *, parse: bool) -> Frame:
        prefix = await self.content(
            template.prefix, "prefix", is_first=True, with_control_tokens=parse
        )
        suffix = await self.content(template.suffix, "suffix", with_control_tokens=parse)
        num_bos = self.tokenizer.num_bos_tokens if isinstance(template.prefix, str) else 0
        return Frame(prefix, suffix, num_bos, is_chat=False)

    async def _chat_frame(
        self, template: ChatTemplate | ChatPrompt, *, parse: bool, begin_answer: bool
    ) -> Frame:
        num_chars = sum(len(message.content) for message in template.messages)
        left, right = await self._run(
            num_chars, lambda: self._chat_parts(template, parse, begin_answer)
        )
        name = "chat.messages"
        return Frame(await self._all(left, name), await self._all(right, name), 0, is_chat=True)

    def _chat_parts(
        self, template: ChatTemplate | ChatPrompt, parse: bool, begin_answer: bool
    ) -> tuple[list[Part], list[Part]]:
        for index, message in enumerate(template.messages):
            _check_encodable(message.content, f"chat.messages[{index}].content")
        tokenizer, messages = self.tokenizer, template.messages
        written = tokenizer.encoder.parts_written
        if isinstance(template, ChatPrompt):
            whole = tokenizer.render_chat(
                messages, with_control_tokens=parse, add_generation_prompt=begin_answer
            )
            return written(whole, is_first=True), []
        slot = template.context_slot or DEFAULT_CONTEXT_SLOT
        left, right = split_chat(
            tokenizer,
            messages,
            slot,
            with_control_tokens=parse,
            add_generation_prompt=begin_answer,
        )
        return written(left, is_first=True), written(right, is_first=False)

    async def _all(self, parts: Sequence[Part], name: str) -> Tokens:
        """Encodes all parts; raises when they have more tokens than the model takes."""
        tokens, num_untokenized = await self._encode(parts, self._max_model_len)
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
            parts = await self._run(
                len(text), lambda: self.tokenizer.parts(text, with_control_tokens=parse)
            )
            tokens, num_untokenized = await self._encode(parts, room.num_tokens)
        room.take(tokens, num_untokenized)
        return ContentDocument(document.id, tokens, num_untokenized)

    def _least_tokens(self, text: str) -> int:
        """Returns a lower bound on the text's tokens; 0 where only tokenizing can give one."""
        max_token_bytes = self.tokenizer.encoder.max_token_bytes
        return -(-len(text.encode()) // max_token_bytes) if max_token_bytes else 0

    async def _encode(self, parts: Sequence[Part], max_tokens: int) -> tuple[Tokens, int]:
        """Returns the tokens, up to about `max_tokens`, and a lower bound on further ones."""
        encoder = self.tokenizer.encoder
        num_chars = sum(len(part.text) for part in parts if isinstance(part, Piece))
        if num_chars <= _SHORT_CHARS:
            return await self._run(num_chars, lambda: encoder.encode(parts)), 0
        encoded: list[Tokens] = [_NOTHING]
        num_tokens = 0
        for done, part in enumerate(parts, start=1):
            encoded.append(
                await self._run(num_chars, lambda part=part: encoder.encode_part(part))  # type: ignore[misc]
                if isinstance(part, Piece)
                else encoder.encode_part(part)
            )
            num_tokens += len(encoded[-1])
            if num_tokens > max_tokens and done < len(parts):
                return np.concatenate(encoded), 1
        return np.concatenate(encoded), 0

    async def _run(self, num_chars: int, work: Callable[[], T]) -> T:
        """Runs work on a text, or on a piece of one, of `num_chars` characters."""
        if num_chars <= _INLINE_CHARS:
            return work()
        threads = self._short if num_chars <= _SHORT_CHARS else self._long
        return await asyncio.get_running_loop().run_in_executor(threads, work)


_NOTHING = as_tokens([])


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
