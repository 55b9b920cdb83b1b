"""Longest common prefix of token sequences: what an update leaves valid.

Pure. The router uses it to send workers only what changed; the prefill
scheduler uses it to keep the KV of every token that is still the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint32]

# Equality of a chunk is one vectorized pass; scanning in chunks keeps the cost
# proportional to the common prefix instead of to the whole sequence.
_CHUNK_TOKENS = 16_384


def as_tokens(token_ids: Sequence[int] | Tokens) -> Tokens:
    """The token ids as a flat uint32 array (no copy if they already are one)."""
    return np.asarray(token_ids, dtype=np.uint32)


def common_prefix_len(old: Sequence[int] | Tokens, new: Sequence[int] | Tokens) -> int:
    """How many leading tokens `old` and `new` share."""
    a, b = as_tokens(old), as_tokens(new)
    length = min(len(a), len(b))
    for start in range(0, length, _CHUNK_TOKENS):
        stop = min(start + _CHUNK_TOKENS, length)
        differs = a[start:stop] != b[start:stop]
        first = int(differs.argmax())
        if differs[first]:
            return start + first
    return length
