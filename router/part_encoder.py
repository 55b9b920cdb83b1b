"""Encodes texts part by part, off the event loop if they are long.

Owns the threads for it. Long texts use a separate thread, piece by piece in turn, so they
do not delay short ones, and delay each other evenly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from router.encoder import PIECE_CHARS, Part, Piece, TextEncoder
from stream2llm.serving.sessions.prefix import Tokens, as_tokens

T = TypeVar("T")
# Above this many characters, tokenizing takes too long for others to wait for it.
SHORT_CHARS = 2 * PIECE_CHARS
# Below this many, it takes the event loop less time (0.25 us a character) than to have a thread do
# it (70 to 110 us).
_INLINE_CHARS = 400
_NUM_SHORT_THREADS = 2
_NOTHING = as_tokens([])


class PartEncoder:
    """Encodes the parts of texts, all or as many as are needed."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._short = ThreadPoolExecutor(_NUM_SHORT_THREADS, thread_name_prefix="tokenize")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="tokenize-long")

    def close(self) -> None:
        """Waits for work under way."""
        for threads in (self._short, self._long):
            threads.shutdown(cancel_futures=True)

    async def first(self, parts: Sequence[Part], max_tokens: int) -> tuple[Tokens, int]:
        """Returns the tokens, up to about `max_tokens`, and a lower bound on further ones."""
        num_chars = _num_chars(parts)
        if num_chars <= SHORT_CHARS:
            return await self.run(num_chars, lambda: self._encoder.encode(parts)), 0
        encoded: list[Tokens] = [_NOTHING]
        num_tokens = 0
        for done, part in enumerate(parts, start=1):
            encoded.append(await self._encode(part, num_chars))
            num_tokens += len(encoded[-1])
            if num_tokens > max_tokens and done < len(parts):
                return np.concatenate(encoded), 1
        return np.concatenate(encoded), 0

    async def last(self, parts: Sequence[Part], num_tokens: int) -> Tokens:
        """Returns the last `num_tokens` tokens, all if there are fewer."""
        num_chars = _num_chars(parts)
        encoded: list[Tokens] = []
        num_missing = num_tokens
        for part in reversed(parts):
            if num_missing <= 0:
                break
            encoded.append(await self._encode(part, num_chars))
            num_missing -= len(encoded[-1])
        tokens: Tokens = np.concatenate([_NOTHING, *reversed(encoded)])[-num_tokens:]
        return tokens

    async def run(self, num_chars: int, work: Callable[[], T]) -> T:
        """Runs work on a text, or on a piece of one, of `num_chars` characters."""
        if num_chars <= _INLINE_CHARS:
            return work()
        threads = self._short if num_chars <= SHORT_CHARS else self._long
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    async def _encode(self, part: Part, num_chars: int) -> Tokens:
        if isinstance(part, int):
            return self._encoder.encode_part(part)
        return await self.run(num_chars, lambda: self._encoder.encode_part(part))


def _num_chars(parts: Sequence[Part]) -> int:
    return sum(len(part.text) for part in parts if isinstance(part, Piece))
