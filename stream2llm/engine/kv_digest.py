"""Digests of KV blocks: a few values of every block and layer, to compare after a transfer. Pure.

A block's key is a hash of all tokens up to its end. Both sides derive it from their own
tokens. It decides which values of the block are sampled: `NUM_SAMPLES` 32-bit words for
each layer and KV head, in other slots in each layer. The words of a layer, mixed with the
key, add up to one 16-bit value; a row of a digest is a block's values, one for each layer.
Values add up over the heads, so that ranks of any number sample what they hold, and the
sums over the ranks of either side are equal.

    sender:    tokens -> keys -> samples (kv_sampling.py) -> rows, which travel with the blocks
    receiver:  tokens -> keys -> samples of what was read -> compared with the rows

A block with other KV has equal values in all layers with a probability of 2**-16 per layer
in which it differs. A changed bit outside the sampled words is not noticed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
# [blocks, layers]
Rows = npt.NDArray[np.uint16]

# Key of our part in vLLM's kv_transfer_params: the rows of all blocks, as bytes.
DIGEST_KEY = "stream2llm_kv_digest"
# 32-bit words for each block, layer and KV head: one of K and one of V, where K is stored before V.
NUM_SAMPLES = 2
BYTES_PER_VALUE = 2
# Engine arguments that, above 1, split KV by layers or tokens. No rank then has the values of
# whole blocks.
UNCOVERED_SPLITS = (
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "decode_context_parallel_size",
)
_KEY_TYPE = "<u8"
_VALUE_TYPE = "<u2"

# splitmix64's finalizer, and distinct odd constants to tell positions apart.
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: Keys) -> Keys:
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    mixed: Keys = values ^ (values >> np.uint64(31))
    return mixed


def _hash_blocks(tokens: npt.NDArray[np.uint64], first_index: int) -> Keys:
    """Returns a hash of each row of tokens [blocks, tokens of a block] and the block's index."""
    slots = np.arange(1, tokens.shape[1] + 1, dtype=np.uint64) * _GOLDEN
    sums = _mix(tokens + slots).sum(axis=1, dtype=np.uint64)
    places = np.arange(first_index + 1, first_index + 1 + len(tokens), dtype=np.uint64)
    return _mix(sums + _mix(places * _GOLDEN + np.uint64(tokens.shape[1])))


class BlockKeys:
    """The keys of one sequence's full blocks, from its start; they follow the sequence."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._keys = array("Q")

    def __len__(self) -> int:
        return len(self._keys)

    def cut(self, num_blocks: int) -> None:
        """Drops the keys behind the first `num_blocks` blocks, whose tokens may change."""
        del self._keys[num_blocks:]

    def extend(self, tokens: Sequence[int], num_blocks: int) -> None:
        """Adds keys up to `num_blocks` full blocks of `tokens`, the whole sequence."""
        first, size = len(self._keys), self.block_size
        if num_blocks <= first:
            return
        new = np.asarray(tokens[first * size : num_blocks * size], dtype=np.uint64)
        hashes = _hash_blocks(new.reshape(num_blocks - first, size), first)
        hashes[:1] += self._last
        self._keys.frombytes(np.cumsum(hashes, dtype=np.uint64).tobytes())

    @property
    def _last(self) -> np.uint64:
        return np.uint64(self._keys[-1] if self._keys else 0)

    def __getitem__(self, index: int) -> int:
        return self._keys[index]

    def partial(self, tokens: Sequence[int]) -> int:
        """Returns the key of a last block that only these tokens fill, behind all full ones."""
        new = np.asarray(tokens, dtype=np.uint64).reshape(1, len(tokens))
        return int((_hash_blocks(new, len(self._keys)) + self._last)[0])

    def to_wire(self, tokens: Sequence[int]) -> bytes:
        """Returns the keys of all blocks of `tokens`, the whole sequence, the last one's included."""
        num_full = len(tokens) // self.block_size
        self.cut(num_full)
        self.extend(tokens, num_full)
        keys = np.array(self._keys, dtype=_KEY_TYPE).tobytes()
        rest = tokens[num_full * self.block_size :]
        return keys + (np.array([self.partial(rest)], dtype=_KEY_TYPE).tobytes() if rest else b"")


def keys_from_wire(raw: bytes) -> Keys:
    """Inverse of `BlockKeys.to_wire`."""
    return np.frombuffer(raw, dtype=_KEY_TYPE).astype(np.uint64)


@dataclass(frozen=True, slots=True)
class SampleJob:
    """Blocks to sample; arrays of one element for each block."""

    block_ids: Counts
    keys: Keys
    # Tokens in the block: only their slots are sampled.
    num_filled: Counts

    @classmethod
    def of_last(cls, block_ids: Sequence[int], keys: Keys, num_tokens: int, size: int) -> SampleJob:
        """Returns the job for the last `len(block_ids)` of the blocks that `num_tokens` tokens fill."""
        filled = np.full(len(block_ids), size, dtype=np.int64)
        filled[-1:] = num_tokens - (-(-num_tokens // size) - 1) * size
        return cls(np.array(block_ids, dtype=np.int64), keys[len(keys) - len(block_ids) :], filled)


@dataclass(frozen=True, slots=True)
class Places:
    """Where in each block the first layer is sampled; arrays of shape [blocks, NUM_SAMPLES]."""

    slots: Counts
    # Within the words of a slot that this sample covers.
    words: Counts


def places(job: SampleJob, words_per_sample: int) -> Places:
    """Returns where to sample in the first layer; other layers use the slots and words after it."""
    number = np.arange(1, NUM_SAMPLES + 1, dtype=np.uint64) * _GOLDEN
    mixed = _mix(job.keys[:, None] + number)
    filled = job.num_filled.astype(np.uint64)[:, None]
    slots = (mixed >> np.uint64(32)) % filled
    words = (mixed & np.uint64(0xFFFFFFFF)) % np.uint64(words_per_sample)
    return Places(slots.astype(np.int64), words.astype(np.int64))


class Part(NamedTuple):
    """One rank's values for some blocks."""

    # The rank's first KV head; ranks with copies of the same heads have the same one.
    first_head: int
    rows: Rows


@dataclass(frozen=True, slots=True)
class Combined:
    """The values of all ranks together."""

    rows: Rows
    # [blocks, layers]: copies of the same heads have different values.
    copies_differ: npt.NDArray[np.bool_]


def combine(parts: Iterable[Part]) -> Combined:
    """Adds up the ranks' values; of ranks with the same heads only the first counts."""
    by_head: dict[int, Rows] = {}
    differ: npt.NDArray[np.bool_] | None = None
    for first_head, rows in parts:
        if differ is None:
            differ = np.zeros(rows.shape, dtype=np.bool_)
        if first_head in by_head:
            differ |= by_head[first_head] != rows
        else:
            by_head[first_head] = rows
    assert differ is not None, "no rank has sampled"
    total: Rows = np.stack(list(by_head.values())).sum(axis=0, dtype=np.uint16)
    return Combined(total, differ)


class BadValue(NamedTuple):
    """A value that is not as it was at the sender."""

    # Index of the block in the sequence.
    block: int
    layer: int


def bad_values(expected: bytes, combined: Combined, num_blocks: int) -> list[BadValue]:
    """Returns the values that differ from the sender's; empty when all agree.

    `expected` are the rows of all `num_blocks` blocks of the sequence; `combined` those of the
    last ones, which were read. Rows that cannot be those of the blocks are bad, all of them.
    """
    num_read, num_layers = combined.rows.shape
    first = num_blocks - num_read
    is_whole = len(expected) == num_blocks * num_layers * BYTES_PER_VALUE and first >= 0
    if not is_whole:
        bad = np.ones(combined.rows.shape, dtype=np.bool_)
    else:
        rows = np.frombuffer(expected, dtype=_VALUE_TYPE).reshape(num_blocks, num_layers)
        bad = (rows[first:] != combined.rows) | combined.copies_differ
    return [BadValue(first + int(block), int(layer)) for block, layer in np.argwhere(bad)]


def rows_to_wire(rows: Rows) -> list[bytes]:
    """Returns the bytes of each row, as they travel."""
    return [row.tobytes() for row in rows.astype(_VALUE_TYPE)]
