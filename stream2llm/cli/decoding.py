"""Bytes to text: by their byte order mark, else in the given encoding.

Line ends become "\\n", as in Python's text files.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from io import IncrementalNewlineDecoder

DEFAULT_ENCODING = "utf-8"
NUL = "\0"
# UTF-32's marks come first, because one of them begins like UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Python's escapes for undecodable bytes (PEP 383).
_ESCAPED = range(0xDC80, 0xDD00)


class NotTextError(Exception):
    """The bytes are not text; the message says why, and what may help."""


def check_encoding(name: str) -> str:
    """Returns the name of a text encoding; raises ValueError for any other."""
    try:
        codecs.getincrementaldecoder(name)
        b"a".decode(name)
    except UnicodeDecodeError:
        pass  # of more bytes than that
    except (LookupError, ValueError) as error:
        raise ValueError(f"{name!r} is not a text encoding of Python") from error
    return name


def decode(data: bytes, encoding: str) -> str:
    """Returns the text of a whole file; raises NotTextError."""
    found = encoding_of(data, encoding)
    if found == DEFAULT_ENCODING and NUL.encode() in data:
        raise _binary()  # without reading the whole file, which may be large
    try:
        text = data.decode(found)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise _undecodable(found, f"byte 0x{byte:02x} at {error.start}") from error
    if NUL in text:
        raise _binary()
    return IncrementalNewlineDecoder(None, translate=True).decode(text, final=True)


def decode_stream(chunks: Iterable[bytes], encoding: str) -> Iterator[str]:
    """Yields text as its bytes arrive. Leaves undecodable bytes to `check_decoded`, so that the
    documents around them are not lost; raises NotTextError where no text can follow."""
    decoder: IncrementalNewlineDecoder | None = None
    head = b""
    for chunk in chunks:
        if decoder is None:
            head += chunk
            if _may_become_a_mark(head):
                continue
            decoder, chunk = _decoder(encoding_of(head, encoding)), head
        yield _decoded(decoder, chunk)
    if decoder is None:
        yield _decoded(_decoder(encoding_of(head, encoding)), head, final=True)
    else:
        yield _decoded(decoder, b"", final=True)


def check_decoded(text: str, encoding: str) -> None:
    """Raises NotTextError for a document of `decode_stream` that is not text."""
    if NUL in text:
        raise NotTextError("it contains NUL characters, which end a document with --null alone")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if code in _ESCAPED else f"U+{code:04X}"
        raise _undecodable(encoding, f"{what} at character {error.start}") from error


def encoding_of(head: bytes, default: str) -> str:
    """Returns the encoding of the byte order mark, if there is one."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), default)


def _may_become_a_mark(head: bytes) -> bool:
    return any(len(head) < len(mark) and mark.startswith(head) for mark, _ in _MARKS)


def _decoder(encoding: str) -> IncrementalNewlineDecoder:
    bytes_decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
    return IncrementalNewlineDecoder(bytes_decoder, translate=True)


def _decoded(decoder: IncrementalNewlineDecoder, chunk: bytes, *, final: bool = False) -> str:
    try:
        return decoder.decode(chunk, final=final)
    except UnicodeDecodeError as error:  # in an encoding whose bytes cannot be skipped
        raise _undecodable(error.encoding, error.reason) from error


def _undecodable(encoding: str, where: str) -> NotTextError:
    name = encoding.removesuffix("-sig").upper()
    return NotTextError(f"not {name} text ({where}); --encoding names another encoding")


def _binary() -> NotTextError:
    return NotTextError(
        "not a text file (it contains NUL characters; UTF-16 and UTF-32 without a byte order "
        "mark need --encoding)"
    )
