"""Contents of events to token ids, off the event loop when there is much text.

Owns the threads for it. Order inside a session is the caller's: it awaits one
event before the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from router.context import ContentDocument
from router.tokenizer import ModelTokenizer, split_chat
from router.types import ChatTemplate, Content, DocumentInput, PlainTemplate
from stream2llm.errors import InvalidRequestError
from stream2llm.prefix import Tokens

T = TypeVar("T")
# Below this many characters tokenizing takes less time than a thread switch
# under load.
_INLINE_CHARS = 2_000
_NUM_THREADS = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the documents, as tokens."""

    prefix: Tokens
    suffix: Tokens
    # Tokens of the prefix that the client did not send.
    num_bos_tokens: int
    # A chat template owns its suffix: a seal cannot replace it.
    is_chat: bool


class TextInput:
    """Tokenizes templates and documents."""

    def __init__(self, tokenizer: ModelTokenizer, max_model_len: int) -> None:
        self.tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="tokenize")

    def close(self) -> None:
        """Waits for what is being tokenized."""
        self._threads.shutdown(cancel_futures=True)

    async def frame(self, template: PlainTemplate | ChatTemplate) -> Frame:
        """The tokens around the documents."""
        if isinstance(template, PlainTemplate):
            num_chars = _num_chars(template.prefix) + _num_chars(template.suffix)
            self._check_chars(num_chars, "open.plain")
            return await self._run(num_chars, lambda: self._plain_frame(template))
        num_chars = sum(len(message.content) for message in template.messages)
        self._check_chars(num_chars, "open.chat")
        return await self._run(num_chars, lambda: self._chat_frame(template))

    async def content(self, content: Content, field: str) -> Tokens:
        """One content, nothing put around it."""
        self._check_chars(_num_chars(content), field)
        return await self._run(_num_chars(content), lambda: self._tokens(content, field))

    async def documents(
        self, documents: Sequence[DocumentInput], event: str
    ) -> tuple[ContentDocument, ...]:
        """The documents of one event, each tokenized on its own."""
        num_chars = sum(_num_chars(document.content) for document in documents)
        self._check_chars(num_chars, f"{event}.documents")
        return await self._run(num_chars, lambda: self._documents(documents, event))

    def _check_chars(self, num_chars: int, field: str) -> None:
        """Refuses what cannot fit before a long time is spent on tokenizing it."""
        max_chars = self._max_model_len * self.tokenizer.longest_token_chars
        if num_chars > max_chars:
            raise InvalidRequestError(
                f"{field} has {num_chars} characters; at most {max_chars} can fit into the"
                f" {self._max_model_len} tokens of the model (max_model_len)",
                reason="CONTEXT_TOO_LONG",
                field=field,
            )

    async def _run(self, num_chars: int, work: Callable[[], T]) -> T:
        if num_chars <= _INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _plain_frame(self, template: PlainTemplate) -> Frame:
        prefix, suffix = template.prefix, template.suffix
        num_bos = self.tokenizer.num_bos_tokens if isinstance(prefix, str) else 0
        prefix_tokens = (
            self.tokenizer.encode_prefix(prefix)
            if isinstance(prefix, str)
            else self._tokens(prefix, "prefix.token_ids")
        )
        suffix_tokens = self._tokens(suffix, "suffix.token_ids")
        return Frame(prefix_tokens, suffix_tokens, num_bos, is_chat=False)

    def _chat_frame(self, template: ChatTemplate) -> Frame:
        if template.context_slot is None:
            left, right = self.tokenizer.render_chat(template.messages), ""
        else:
            left, right = split_chat(self.tokenizer, template.messages, template.context_slot)
        encode = self.tokenizer.encode  # the template writes its own special tokens
        return Frame(encode(left), encode(right), 0, is_chat=True)

    def _documents(
        self, documents: Sequence[DocumentInput], event: str
    ) -> tuple[ContentDocument, ...]:
        return tuple(
            ContentDocument(
                document.document_id,
                None
                if document.content is None
                else self._tokens(document.content, f"{event}.documents[{index}]"),
            )
            for index, document in enumerate(documents)
        )

    def _tokens(self, content: Content, field: str) -> Tokens:
        if isinstance(content, str):
            return self.tokenizer.encode(_encodable(content, field))
        return self.tokenizer.check_ids(content, field)


def _encodable(text: str, field: str) -> str:
    # Protobuf text is valid UTF-8; a lone surrogate can only come from code.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{field} is not valid Unicode: {error.reason}") from error
    return text


def _num_chars(content: Content | None) -> int:
    # Checking token ids costs next to nothing.
    return len(content) if isinstance(content, str) else 0
