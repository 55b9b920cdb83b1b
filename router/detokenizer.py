"""Token ids to text, one at a time: the result equals decoding prompt and answer at once.

In byte-level vocabularies (GPT-2, Llama 3, Qwen, SmolLM) each token is a byte string;
an incremental UTF-8 decoder holds back at most three bytes, and invalid bytes give
U+FFFD exactly where decoding at once does. In vocabularies of the SentencePiece kind
(Llama 2, Mistral, Gemma) each token has its own text, except the first, which loses its
word mark, and byte tokens for characters without a token. Special tokens have no text,
unless it is asked for.
All others go through the tokenizers library's DecodeStream, which raises on some
invalid byte runs; a new stream then takes over.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from stream2llm.serving.sessions.prefix import Tokens

_REPLACEMENT = "\ufffd"
# Context that a new DecodeStream needs to place spaces as the old one would.
_NUM_CONTEXT_TOKENS = 8
_PIECE_DECODERS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Detokenizer(Protocol):
    """The text of one answer."""

    def push(self, token_id: int) -> str:
        """Takes a token; returns the text that is certain now, often empty."""

    def flush(self) -> str:
        """Ends the answer: incomplete bytes become U+FFFD."""


class Detokenizers:
    """Makes the detokenizers of one vocabulary, and knows each token's bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
        # With and without the special tokens' text.
        self._tables = {skip: _table(tokenizer, decoder, skip) for skip in (False, True)}

    def of_answer(self, prompt: Tokens, *, skip_special_tokens: bool = True) -> Detokenizer:
        """Returns the detokenizer of one answer to these prompt tokens."""
        table = self._tables[skip_special_tokens]
        if isinstance(table, ByteTable):
            return ByteLevelDetokenizer(table)
        if isinstance(table, PieceTable):
            return PieceDetokenizer(table, is_first=not table.has_text(prompt))
        end = prompt[-_NUM_CONTEXT_TOKENS:].tolist()
        return StreamDetokenizer(self._tokenizer, end, skip_special_tokens=skip_special_tokens)

    def bytes_of(self, token_id: int) -> bytes:
        """Returns the bytes of one token inside a text, of special ones too."""
        table = self._tables[False]
        if isinstance(table, ByteTable):
            return table.bytes_of(token_id)
        if isinstance(table, PieceTable):
            piece = table.of(token_id)
            return piece if isinstance(piece, bytes) else piece.encode()
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False)).encode()


def _table(
    tokenizer: Tokenizer, decoder: dict[str, Any], skip_special_tokens: bool
) -> ByteTable | PieceTable | None:
    """Returns None where a token's text depends on those around it."""
    if decoder.get("type") == "ByteLevel":
        return ByteTable(tokenizer, skip_special_tokens=skip_special_tokens)
    if not _is_sentencepiece(decoder):
        return None
    has_bytes = "ByteFallback" in _kinds(decoder)
    return PieceTable(tokenizer, has_bytes=has_bytes, skip_special_tokens=skip_special_tokens)


def _skipped_ids(tokenizer: Tokenizer, skip_special_tokens: bool) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(i for i, token in added.items() if token.special and skip_special_tokens)


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
    """The bytes of each token of a byte-level vocabulary; skipped special tokens have none."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped_ids = _skipped_ids(tokenizer, skip_special_tokens)
        self._byte_of_char = {char: byte for byte, char in enumerate(byte_alphabet())}
        # At most as large as the vocabulary.
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """Returns b"" for skipped tokens and for ids without a token."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._compute(token_id)
        return known

    def _compute(self, token_id: int) -> bytes:
        token = None if token_id in self._skipped_ids else self._tokenizer.id_to_token(token_id)
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

    def __init__(
        self, tokenizer: Tokenizer, *, has_bytes: bool, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._has_bytes = has_bytes
        self._skips = skip_special_tokens
        self._skipped_ids = _skipped_ids(tokenizer, skip_special_tokens)
        self._before = self._find_before()
        # At most as large as the vocabulary.
        self._known: dict[int, str | bytes] = {}

    def of(self, token_id: int) -> str | bytes:
        """Returns a token's text inside a text; "" for skipped tokens."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._compute(token_id)
        return known

    def of_first(self, token_id: int) -> str | bytes:
        """Returns a token's text at the beginning of a text."""
        inside = self.of(token_id)
        return inside if isinstance(inside, bytes) else self._decode([token_id])

    def has_text(self, token_ids: Tokens) -> bool:
        """Whether any of these tokens is not skipped."""
        # Backwards, one by one: a prompt ends with a few special tokens at most.
        return any(int(token_id) not in self._skipped_ids for token_id in reversed(token_ids))

    def _compute(self, token_id: int) -> str | bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._skipped_ids:
            return ""
        if self._has_bytes and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return self._decode([*self._before, token_id])[len(self._decode(self._before)) :]

    def _find_before(self) -> list[int]:
        """Finds a token to decode before another one, so that that one is not the first."""
        for token_id in range(self._tokenizer.get_vocab_size()):
            token = self._tokenizer.id_to_token(token_id)
            if token_id in self._skipped_ids or not (token and token.isalnum()):
                continue
            if self._decode([token_id, token_id]) == 2 * token:
                return [token_id]
        return []

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=self._skips))


class PieceDetokenizer:
    """Exact for answers that are valid UTF-8; each invalid byte gives U+FFFD."""

    def __init__(self, table: PieceTable, *, is_first: bool) -> None:
        self._table = table
        self._is_first = is_first
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        piece = self._table.of_first(token_id) if self._is_first else self._table.of(token_id)
        if not piece and not self._table.of(token_id):  # a special token splits no character
            return ""
        self._is_first = False
        return self._utf8.decode(piece) if isinstance(piece, bytes) else self.flush() + piece

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class StreamDetokenizer:
    """For every other vocabulary; exact for answers that are valid UTF-8."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_end: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skips = skip_special_tokens
        self._prompt_end = list(prompt_end)
        self._stream = self._stream_behind(self._prompt_end)
        # Grows with the answer.
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
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=self._skips))

    def _stream_behind(self, token_ids: list[int]) -> Any:
        return DecodeStream(ids=token_ids, skip_special_tokens=self._skips)

    def _restart(self) -> str:
        self._stream = self._stream_behind(self._ids[-_NUM_CONTEXT_TOKENS:])
        return _REPLACEMENT


def byte_alphabet() -> list[str]:
    """Returns the character that stands for each byte in byte-level vocabularies.

    Printable Latin-1 stands for itself; the rest follows from U+0100 upward.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(0x100)]
