"""Longest common prefix (LCP) of token sequences: the part that an update leaves valid.

Pure. The router uses it to send workers only changes; the prefill scheduler uses it to
keep the KV of every unchanged token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint32]

# A chunk is compared in one vectorized pass. Chunks keep the cost, mostly that of
# converting lists to arrays, proportional to the common prefix instead of the whole
# sequence; they grow, because most lists differ early or not at all.
_FIRST_CHUNK_TOKENS = 256
_LAST_CHUNK_TOKENS = 16_384


def as_tokens(token_ids: Sequence[int] | Tokens) -> Tokens:
    """Returns the token ids as a flat uint32 array (no copy if they already are one)."""
    return np.asarray(token_ids, dtype=np.uint32)


def common_prefix_len(
    old: Sequence[int] | Tokens, new: Sequence[int] | Tokens, *, old_start: int = 0
) -> int:
    """Returns how many leading tokens `old[old_start:]` and `new` share."""
    length = min(len(old) - old_start, len(new))
    start, size = 0, _FIRST_CHUNK_TOKENS
    while start < length:
        stop = min(start + size, length)
        a = as_tokens(old[old_start + start : old_start + stop])
        differs = a != as_tokens(new[start:stop])
        first = int(differs.argmax())
        if differs[first]:
            return start + first
        start, size = stop, min(2 * size, _LAST_CHUNK_TOKENS)
    return length
