"""Token ids to text, one at a time: what decoding prompt and answer at once adds to the prompt.

Byte-level vocabularies (GPT-2, Llama 3, Qwen, SmolLM) map each token to bytes;
an incremental UTF-8 decoder then holds back at most three bytes, and bytes that
can never become a character give U+FFFD exactly where decoding at once has it.
So do those of the SentencePiece kind (Llama 2, Mistral, Gemma): each token has its
text, but for the first of all, which loses its word mark, and for the bytes of
characters without a token of their own.
All others go through the tokenizers library's DecodeStream, which raises on
some invalid byte runs; there we start a new stream and go on.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from stream2llm.serving.prefix import Tokens

_REPLACEMENT = "\ufffd"
# What a new DecodeStream needs to see to put spaces as the old one would.
_NUM_CONTEXT_TOKENS = 8
_PIECE_DECODERS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Detokenizer(Protocol):
    """The text of one answer."""

    def push(self, token_id: int) -> str:
        """One more token; the text that is now certain, often empty."""
        ...

    def flush(self) -> str:
        """The answer has ended: incomplete bytes become U+FFFD."""
        ...


def detokenizer_factory(tokenizer: Tokenizer) -> Callable[[Tokens], Detokenizer]:
    """Makes the detokenizers of one model, one for each answer; they take the prompt's tokens."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    if decoder.get("type") == "ByteLevel":
        table = ByteTable(tokenizer)
        return lambda _: ByteLevelDetokenizer(table)
    if _is_sentencepiece(decoder):
        pieces = PieceTable(tokenizer, has_bytes="ByteFallback" in _kinds(decoder))
        return lambda prompt: PieceDetokenizer(pieces, is_first=not pieces.has_text(prompt))
    return lambda prompt: StreamDetokenizer(tokenizer, prompt[-_NUM_CONTEXT_TOKENS:].tolist())


def _is_sentencepiece(decoder: dict[str, Any]) -> bool:
    """Whether a token's text depends only on whether it is the first."""
    strips_the_end = any(part.get("stop") for part in _parts(decoder))
    return bool(_kinds(decoder)) and _kinds(decoder) <= _PIECE_DECODERS and not strips_the_end


def _parts(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = decoder.get("decoders", [decoder] if decoder else [])
    return parts


def _kinds(decoder: dict[str, Any]) -> set[str]:
    return {part["type"] for part in _parts(decoder)}


class ByteTable:
    """The bytes of each token of a byte-level vocabulary; special tokens have none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = {token_id for token_id, token in added.items() if token.special}
        self._byte_of_char = {char: byte for byte, char in enumerate(byte_alphabet())}
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


class PieceTable:
    """The text or the byte of each token of a vocabulary of the SentencePiece kind."""

    def __init__(self, tokenizer: Tokenizer, *, has_bytes: bool) -> None:
        self._tokenizer = tokenizer
        self._has_bytes = has_bytes
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = {token_id for token_id, token in added.items() if token.special}
        self._before = self._find_before()
        # As large as the vocabulary at most.
        self._known: dict[int, str | bytes] = {}

    def of(self, token_id: int) -> str | bytes:
        """Inside a text; the empty text for special tokens."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._compute(token_id)
        return known

    def of_first(self, token_id: int) -> str | bytes:
        """At the beginning of a text."""
        inside = self.of(token_id)
        return inside if isinstance(inside, bytes) else self._decode([token_id])

    def has_text(self, token_ids: Tokens) -> bool:
        """Whether any of these tokens is more than a control token."""
        # From the end, one by one: a prompt ends with a few control tokens at most.
        return any(int(token_id) not in self._special_ids for token_id in reversed(token_ids))

    def _compute(self, token_id: int) -> str | bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            return ""
        if self._has_bytes and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return self._decode([*self._before, token_id])[len(self._decode(self._before)) :]

    def _find_before(self) -> list[int]:
        """A token that stands before another one, so that this one is not the first."""
        for token_id in range(self._tokenizer.get_vocab_size()):
            token = self._tokenizer.id_to_token(token_id)
            if token_id in self._special_ids or not (token and token.isalnum()):
                continue
            if self._decode([token_id, token_id]) == 2 * token:
                return [token_id]
        return []

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


class PieceDetokenizer:
    """Exact for answers that are valid UTF-8; other bytes give U+FFFD, as in byte-level ones."""

    def __init__(self, table: PieceTable, *, is_first: bool) -> None:
        self._table = table
        self._is_first = is_first
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        piece = self._table.of_first(token_id) if self._is_first else self._table.of(token_id)
        if not piece and not self._table.of(token_id):  # a special token interrupts no character
            return ""
        self._is_first = False
        return self._utf8.decode(piece) if isinstance(piece, bytes) else self.flush() + piece

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class StreamDetokenizer:
    """For every other vocabulary; exact for answers that are valid UTF-8."""

    def __init__(self, tokenizer: Tokenizer, prompt_end: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._prompt_end = list(prompt_end)
        self._stream: Any = DecodeStream(ids=self._prompt_end, skip_special_tokens=True)
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
        shown = self._decode(self._prompt_end) + "".join(self._shown)
        whole = self._decode([*self._prompt_end, *self._ids])
        return whole[len(shown) :] if whole.startswith(shown) else ""

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _restart(self) -> str:
        self._stream = DecodeStream(ids=self._ids[-_NUM_CONTEXT_TOKENS:], skip_special_tokens=True)
        return _REPLACEMENT


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies.

    Printable Latin-1 stands for itself; the rest follows from U+0100 upward.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(0x100)]
