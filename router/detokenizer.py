"""Token ids to text, one at a time, the same text as decoding them all at once.

Byte-level vocabularies (GPT-2, Llama 3, Qwen, SmolLM) map each token to bytes;
an incremental UTF-8 decoder then holds back at most three bytes, and bytes that
can never become a character give U+FFFD exactly where decoding at once has it.
All others go through the tokenizers library's DecodeStream, which raises on
some invalid byte runs; there we start a new stream and go on.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_REPLACEMENT = "\ufffd"
# What a new DecodeStream needs to see to put spaces as the old one would.
_NUM_CONTEXT_TOKENS = 8


class Detokenizer(Protocol):
    """The text of one answer."""

    def push(self, token_id: int) -> str:
        """One more token; the text that is now certain, often empty."""
        ...

    def flush(self) -> str:
        """The answer has ended: incomplete bytes become U+FFFD."""
        ...


def detokenizer_factory(tokenizer: Tokenizer) -> Callable[[], Detokenizer]:
    """Makes the detokenizers of one model, one for each answer."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    if decoder.get("type") == "ByteLevel":
        table = ByteTable(tokenizer)
        return lambda: ByteLevelDetokenizer(table)
    return lambda: StreamDetokenizer(tokenizer)


class ByteTable:
    """The bytes of each token of a byte-level vocabulary; special tokens have none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = {token_id for token_id, token in added.items() if token.special}
        self._byte_of_char = {char: byte for byte, char in enumerate(_byte_alphabet())}
        # As large as the vocabulary at most.
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """Empty for special tokens and for ids the tokenizer has no token for."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._compute(token_id)
        return known

    def _compute(self, token_id: int) -> bytes:
        token = None if token_id in self._special_ids else self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(self._byte_of_char[char] for char in token)
        except KeyError:  # an added token: plain text
            return str(token).encode()


class ByteLevelDetokenizer:
    """Exact for vocabularies whose tokens are byte strings."""

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._table.bytes_of(token_id))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class StreamDetokenizer:
    """For every other vocabulary; exact for answers that are valid UTF-8."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream: Any = DecodeStream(skip_special_tokens=True)
        # As long as the answer.
        self._ids: list[int] = []
        self._shown: list[str] = []

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id) or ""
        except Exception:  # the library raises nothing narrower
            text = self._restart()
        self._shown.append(text)
        return text

    def flush(self) -> str:
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        shown = "".join(self._shown)
        return whole[len(shown) :] if whole.startswith(shown) else ""

    def _restart(self) -> str:
        self._stream = DecodeStream(ids=self._ids[-_NUM_CONTEXT_TOKENS:], skip_special_tokens=True)
        return _REPLACEMENT


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies.

    Printable Latin-1 stands for itself; the rest follows from U+0100 upward.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(0x100)]
