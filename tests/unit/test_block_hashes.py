"""Hashes of blocks are those of vLLM's prefix cache."""

from __future__ import annotations

import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.sessions.block_hashes import BlockHashes, from_wire, to_wire
from stream2llm.serving.sessions.prefix import as_tokens

pytestmark = pytest.mark.unit

ALL = 1_000_000


def of_vllm(tokens: list[int], block_size: int, cache_salt: str) -> tuple[bytes, list[int]]:
    """The root, and what vLLM tells of the blocks."""
    pytest.importorskip("vllm")
    from vllm.utils.hashing import sha256
    from vllm.v1.core import kv_cache_utils as vllm

    vllm.init_none_hash(sha256)
    parent, told = None, []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        extra = (("cache_salt", cache_salt),) if cache_salt and not start else None
        block = tokens[start : start + block_size]
        parent = vllm.hash_block_tokens(sha256, parent, block, extra)
        told.append(int.from_bytes(parent[-8:], "big"))
    return vllm.NONE_HASH, told


@pytest.mark.parametrize("cache_salt", ["", "acme"])
def test_they_are_those_of_vllm(cache_salt: str) -> None:
    tokens = list(range(100, 100 + 70))
    root, told = of_vllm(tokens, 16, cache_salt)
    hashes = BlockHashes(16, root, cache_salt)
    hashes.extend(as_tokens(tokens), ALL)
    assert list(hashes.hashes) == told
    assert len(told) == 4


def test_they_follow_a_sequence_that_changes_and_come_in_chunks() -> None:
    before, after = as_tokens(range(100)), as_tokens([*range(50), *range(200, 260)])
    hashes, anew = BlockHashes(8, b"root"), BlockHashes(8, b"root")
    hashes.extend(before, ALL)
    hashes.cut(50)
    while hashes.extend(after, 3):
        pass
    anew.extend(after, ALL)
    assert hashes.hashes == anew.hashes
    assert len(anew.hashes) == 13


def test_they_travel() -> None:
    assert from_wire(to_wire([1, 2**64 - 1]), "added") == [1, 2**64 - 1]
    with pytest.raises(InvalidRequestError, match="added has 9 bytes"):
        from_wire(bytes(9), "added")
