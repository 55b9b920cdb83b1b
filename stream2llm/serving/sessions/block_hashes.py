"""Hashes of KV blocks as vLLM's prefix cache has them, shortened to 64 bits. Pure.

A block's hash covers all tokens up to its end, and the cache salt. vLLM's default algorithm is
SHA-256 over the pickled block, chained from a root that all processes share unless PYTHONHASHSEED
says otherwise; workers tell theirs. Only placement looks at the 64 bits that travel: a collision
makes a worker seem to hold one block more than it does.
"""

from __future__ import annotations

import hashlib
import pickle
from array import array
from collections.abc import Iterable

import numpy as np

from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.sessions.prefix import Tokens

# The one algorithm of vLLM's that is known here.
ALGORITHM = "sha256"
_DIGEST_BYTES = 32
_WIRE = np.dtype("<u8")
HASH_BYTES = _WIRE.itemsize


def to_wire(hashes: Iterable[int]) -> bytes:
    """The hashes as bytes, eight each, the lowest first."""
    return np.fromiter(hashes, _WIRE).tobytes()


def from_wire(data: bytes, field: str) -> list[int]:
    """Inverse of `to_wire`; raises InvalidRequestError for other bytes."""
    if len(data) % HASH_BYTES:
        raise InvalidRequestError(
            f"{field} has {len(data)} bytes, which are no whole block hashes", field=field
        )
    hashes: list[int] = np.frombuffer(data, _WIRE).tolist()
    return hashes


def num_hashes(data: bytes) -> int:
    """How many hashes there are in bytes of `to_wire`."""
    return len(data) // HASH_BYTES


class BlockHashes:
    """The hashes of one sequence's full blocks, which follow the sequence as it changes."""

    def __init__(self, block_size: int, root: bytes, cache_salt: str = "") -> None:
        """`root` is what the first block is chained to, as the workers tell it."""
        self.block_size = block_size
        # From the first block on.
        self.hashes = array("Q")
        self._root = root
        self._first_extra = (("cache_salt", cache_salt),) if cache_salt else None
        self._digests = bytearray()

    def cut(self, num_tokens: int) -> None:
        """Only the first `num_tokens` tokens have stayed as they were."""
        num_blocks = num_tokens // self.block_size
        del self.hashes[num_blocks:]
        del self._digests[num_blocks * _DIGEST_BYTES :]

    def extend(self, sequence: Tokens, max_blocks: int) -> int:
        """Adds up to `max_blocks` blocks of the whole sequence; returns how many."""
        size, first = self.block_size, len(self.hashes)
        last = min(len(sequence) // size, first + max_blocks)
        digest = bytes(self._digests[-_DIGEST_BYTES:]) or self._root
        for index in range(first, last):
            block = tuple(sequence[index * size : (index + 1) * size].tolist())
            extra = None if index else self._first_extra
            digest = hashlib.sha256(pickle.dumps((digest, block, extra), protocol=5)).digest()
            self._digests += digest
            self.hashes.append(int.from_bytes(digest[-HASH_BYTES:], "big"))
        return last - first
