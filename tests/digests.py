"""What stands for KV and for a model where tests compute nothing.

KV of a position depends on all tokens up to it, and so does its digest; the
first token of an answer depends on the whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Sampled in about one of eight answers; sampling parameters may name it as a stop token.
STOP_TOKEN = 511
_NUM_ANSWERS = 500


def digest_after(digest: int, token_id: int) -> int:
    """The digest of a prefix that is one token longer; hashes of ints are the same everywhere."""
    return hash((digest, token_id))


def prefix_digests(tokens: Iterable[int]) -> list[int]:
    """A digest of each prefix."""
    digests, digest = [], 0
    for token in tokens:
        digest = digest_after(digest, token)
        digests.append(digest)
    return digests


def whole_answer_of(tokens: Sequence[int], num_tokens: int) -> list[int]:
    """The first `num_tokens` tokens of the answer to this sequence."""
    sequence = list(tokens)
    for _ in range(num_tokens):
        sequence.append(answer_of(sequence))
    return sequence[len(tokens) :]


def answer_of(tokens: Sequence[int]) -> int:
    """The first token of the answer to this sequence."""
    digest = prefix_digests(tokens)[-1]
    return STOP_TOKEN if digest % 8 == 0 else 3 + digest % _NUM_ANSWERS
