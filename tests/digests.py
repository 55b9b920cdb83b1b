"""What stands for KV and for a model where tests compute nothing.

KV of a position depends on all tokens up to it, and so does its digest; the
first token of an answer depends on the whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Sampled in about one of eight answers; sampling parameters may name it as a stop token.
STOP_TOKEN = 511
_NUM_ANSWERS = 500


def prefix_digests(tokens: Iterable[int]) -> list[int]:
    """A digest of each prefix; hashes of tuples of ints are the same in every process."""
    digests, digest = [], 0
    for token in tokens:
        digest = hash((digest, token))
        digests.append(digest)
    return digests


def answer_of(tokens: Sequence[int]) -> int:
    """The first token of the answer to this sequence."""
    digest = prefix_digests(tokens)[-1]
    return STOP_TOKEN if digest % 8 == 0 else 3 + digest % _NUM_ANSWERS
