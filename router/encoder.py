"""Text to token ids, as data: a client's text never becomes a control token.

The one exception is template text (`TemplateText`): where the template itself wrote a
control token's text, it becomes that token. The text between two control tokens is
encoded as a whole, whichever side wrote its parts, so that a rendered conversation has the
tokens that the model was trained on. A control token never spans template and data.

Long texts are encoded in pieces: equal texts have equal pieces, and no piece occupies
a thread for long. Immutable, so threads may share it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from router.chat_template import TemplateText
from router.vocabulary import control_ids, plain_tokenizers
from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.sessions.prefix import Tokens, as_tokens

# Some milliseconds of work.
PIECE_CHARS = 8_000
# A text without a space for this long is cut anywhere.
_LONGEST_PIECE_CHARS = 2 * PIECE_CHARS
_INSIDE_BYTE_NAME = re.compile("(?<=<)(?=0x[0-9A-F]{2}>)")


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a text that is encoded on its own."""

    text: str
    # Whether it begins a prompt, which means a word mark in some vocabularies.
    is_first: bool = False


# The parts of a text in order: ids of control tokens, and pieces.
Part = int | Piece


class TextEncoder:
    """Encodes text for one model."""

    def __init__(self, tokenizer: Tokenizer, model_path: str) -> None:
        """Raises InvalidRequestError for a tokenizer that cannot treat control tokens as text."""
        self._tokenizer = tokenizer
        try:
            plain = plain_tokenizers(tokenizer)
        except Exception as error:  # the library raises nothing narrower
            message = f"{model_path}: its tokenizer cannot be used for text alone: {error}"
            raise InvalidRequestError(message) from error
        self._first, self._inside = plain.first, plain.inside
        self.max_token_bytes = plain.max_token_bytes
        self.control_ids = control_ids(tokenizer)
        self.head = self._find_head()
        self._marks_after_control = self._find_marks_after_control()
        # Unigram models replace the name of a byte token in a text with the byte.
        self._reads_byte_names = tokenizer.token_to_id("<0x41>") in _ids(self._inside, "<0x41>")
        self._check(model_path)

    def parts(self, text: str, *, is_first: bool = False) -> list[Part]:
        """Splits plain text: inside a prompt, or at its beginning."""
        cut = pieces(text)
        if self._reads_byte_names and "<0x" in text:
            cut = [part for piece in cut for part in _INSIDE_BYTE_NAME.split(piece)]
        return [Piece(piece, is_first and not i) for i, piece in enumerate(cut)]

    def parts_written(self, text: TemplateText, *, is_first: bool) -> list[Part]:
        """Splits a text, with control tokens where its template wrote them."""
        parts: list[Part] = []
        word_mark = is_first
        for section in self._sections(text):
            if isinstance(section, int):
                parts.append(section)
                word_mark = self._marks_after_control
            else:
                parts += self.parts(section, is_first=word_mark)
                word_mark = False
        return parts

    def encode_part(self, part: Part) -> Tokens:
        """Returns the tokens of one part; those of a text are those of its parts."""
        if isinstance(part, int):
            return as_tokens([part])
        return _ids(self._first if part.is_first else self._inside, part.text)

    def encode(self, parts: Sequence[Part]) -> Tokens:
        """Returns the tokens of all parts."""
        return np.concatenate([as_tokens([]), *map(self.encode_part, parts)])

    def spans(self, piece: Piece) -> list[tuple[int, int]]:
        """Returns for each token of the piece its characters [start, stop)."""
        tokenizer = self._first if piece.is_first else self._inside
        (encoding,) = tokenizer.encode_batch([piece.text], add_special_tokens=False)
        spans: list[tuple[int, int]] = encoding.offsets
        return spans

    def _sections(self, text: TemplateText) -> Iterator[str | int]:
        """Yields control tokens, and the non-empty texts between them."""
        pending: list[str] = []
        for run, is_written in text.runs():
            for part in self._split_all(run) if is_written else [run]:
                if isinstance(part, str):
                    pending.append(part)
                    continue
                if section := "".join(pending):
                    yield section
                pending.clear()
                yield part
        if section := "".join(pending):
            yield section

    def _split_all(self, run: str) -> Iterator[str | int]:
        for piece in pieces(run):
            yield from self._split(piece)

    def _split(self, run: str) -> Iterator[str | int]:
        """Splits template text at its control tokens, as the model's tokenizer does."""
        (encoding,) = self._tokenizer.encode_batch([run], add_special_tokens=False)
        done = 0
        for token_id, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id in self.control_ids:
                yield run[done:begin]
                yield token_id
                done = end
        yield run[done:]

    def _find_head(self) -> Tokens:
        """Returns what the tokenizer puts before a prompt, usually a begin token."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        starts = range(len(whole) - len(bare) + 1)
        at = next((i for i in starts if whole[i : i + len(bare)] == bare), 0)
        return as_tokens(whole[:at])

    def _find_marks_after_control(self) -> bool:
        """Whether this tokenizer puts a word mark behind a control token."""
        marked, unmarked = (_ids(each, "a").tolist() for each in (self._first, self._inside))
        added = self._tokenizer.get_added_tokens_decoder()
        for token_id in self.control_ids:
            ids = self._tokenizer.encode(f"{added[token_id].content}a", add_special_tokens=False)
            if ids.ids[:1] == [token_id] and ids.ids[1:] in (marked, unmarked):
                return marked != unmarked and bool(ids.ids[1:] == marked)
        return False

    def _check(self, model_path: str) -> None:
        added = self._tokenizer.get_added_tokens_decoder()
        unknown = set(_ids(self._inside, "\ufdd0").tolist())  # a noncharacter
        for token_id in self.control_ids:
            ids = _ids(self._inside, added[token_id].content)
            found = self.control_ids.intersection(ids.tolist())
            if found - unknown:
                raise InvalidRequestError(
                    f"{model_path}: the tokenizer makes the control token"
                    f" {added[token_id].content!r} of plain text in a way that cannot be prevented"
                )


def pieces(text: str) -> list[str]:
    """Splits a text into pieces that begin with a space if one is near: words stay whole."""
    cut, begin = [], 0
    while len(text) - begin > _LONGEST_PIECE_CHARS:
        end = _word_end(text, begin + PIECE_CHARS, begin + _LONGEST_PIECE_CHARS)
        cut.append(text[begin:end])
        begin = end
    return [*cut, text[begin:]] if text else []


def _word_end(text: str, begin: int, end: int) -> int:
    """Returns the first index from `begin` on where a space follows a word; else `end`."""
    at = text.find(" ", begin, end)
    while at >= 0 and text[at - 1].isspace():
        at = text.find(" ", at + 1, end)
    return at if at >= 0 else end


def _ids(tokenizer: Tokenizer, text: str) -> Tokens:
    # A batch of one: only batch calls release the GIL.
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return as_tokens(encoding.ids)
