"""Digests of KV blocks.

1. Both sides derive the same keys, however their sequences came about.
2. A key depends on every token up to the end of its block, and on the block's size.
3. Samples lie in filled slots, and different layers sample different slots.
4. Values add up over heads: any ranks sample the same digest.
5. Other KV in any one block and layer, on any rank, has another value there, and only there.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stream2llm.engine.kv_digest import (
    BlockKeys,
    Keys,
    Part,
    Rows,
    SampleJob,
    bad_values,
    combine,
    keys_from_wire,
    places,
    rows_to_wire,
)
from tests.examples import examples

_TOKENS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40)
_SIZE = st.sampled_from([1, 2, 4, 16])


def keys_of(tokens: list[int], size: int) -> Keys:
    """The keys of all blocks, the last one's included."""
    return keys_from_wire(BlockKeys(size).to_wire(tokens))


@examples(50)
@given(first=_TOKENS, kept=st.integers(0, 40), tail=_TOKENS, size=_SIZE, step=st.integers(1, 9))
def test_keys_follow_a_sequence(
    first: list[int], kept: int, tail: list[int], size: int, step: int
) -> None:
    keys = BlockKeys(size)
    for num_tokens in range(0, len(first), step):
        keys.extend(first, num_tokens // size)
    keys.cut(min(kept, len(first)) // size)
    tokens = first[:kept] + tail
    assert (keys_from_wire(keys.to_wire(tokens)) == keys_of(tokens, size)).all()
    assert len(keys_of(tokens, size)) == -(-len(tokens) // size)


@examples(50)
@given(tokens=_TOKENS, size=_SIZE, data=st.data())
def test_a_key_depends_on_every_token_before_its_end(
    tokens: list[int], size: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(tokens) - 1))
    other = [*tokens]
    other[at] ^= 1 << data.draw(st.integers(0, 31))
    differ = keys_of(tokens, size) != keys_of(other, size)
    assert list(differ) == [index >= at // size for index in range(len(differ))]


def test_a_block_that_is_not_full_has_a_key_of_its_own() -> None:
    full, part, zeros = keys_of([0] * 4, 4), keys_of([0] * 3, 4), keys_of([0] * 8, 4)
    assert full[0] != part[0]
    assert zeros[0] != zeros[1]
    assert keys_of([1, 2, 3, 4], 4)[0] != keys_of([2, 1, 3, 4], 4)[0]


@examples(50)
@given(keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9), filled=st.integers(1, 16))
def test_samples_lie_in_filled_slots(keys: list[int], filled: int) -> None:
    job = SampleJob.of_last(
        [0] * len(keys), np.array(keys, dtype=np.uint64), 16 * (len(keys) - 1) + filled, 16
    )
    where = places(job, 8)
    assert (where.slots < job.num_filled[:, None]).all()
    assert (where.slots >= 0).all()
    assert (where.words < 8).all()


# -- samples of tensors ---------------------------------------------------------------

NUM_BLOCKS, NUM_HEADS, SIZE, CONTENT, NUM_LAYERS = 9, 4, 16, 32, 5


def a_sampler(kv: torch.Tensor, head: int) -> Any:
    """Samples [layers, blocks, heads, tokens, content], of which `head` is the first head."""
    pytest.importorskip("vllm")
    from stream2llm.engine.kv_sampling import KvSampler

    caches = {f"model.layers.{number}.attn": cache for number, cache in enumerate(kv)}
    config = SimpleNamespace(
        num_blocks=NUM_BLOCKS, kv_cache_tensors=[SimpleNamespace(layers=list(caches)[::-1])]
    )
    return KvSampler(caches, config, head, in_stream=True)


def a_kv(dtype: torch.dtype) -> torch.Tensor:
    shape = (NUM_LAYERS, NUM_BLOCKS, NUM_HEADS, SIZE, CONTENT)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def sampled(kv: torch.Tensor, job: SampleJob, num_ranks: int) -> Rows:
    """The digest by so many ranks, each with its own heads in memory of its own."""
    step = NUM_HEADS // num_ranks
    parts = []
    for head in range(0, NUM_HEADS, step):
        mine = kv[:, :, head : head + step].contiguous()
        parts.append(Part(head, a_sampler(mine, head).begin(job).rows))
    return combine(parts).rows


def a_job(seed: int = 0) -> SampleJob:
    tokens = np.random.default_rng(seed).integers(0, 30_000, 5 * SIZE + 3).tolist()
    return SampleJob.of_last([8, 1, 3, 2, 5, 7], keys_of(tokens, SIZE), len(tokens), SIZE)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])


@DTYPES
def test_any_ranks_sample_the_same(dtype: torch.dtype) -> None:
    kv = a_kv(torch.float32) * 50 if dtype == torch.uint8 else a_kv(dtype)
    kv = kv.to(dtype)
    one = sampled(kv, a_job(), 1)
    assert (sampled(kv, a_job(), 2) == one).all()
    assert (sampled(kv, a_job(), 4) == one).all()


def test_many_blocks_are_sampled_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kv, job = a_kv(torch.float32), a_job()
    whole = sampled(kv, job, 1)
    samples_per_block = NUM_LAYERS * NUM_HEADS * 2
    for limit in (1, 2 * samples_per_block, 4 * samples_per_block + 1):
        monkeypatch.setattr("stream2llm.engine.kv_sampling._MAX_SAMPLES", limit)
        assert (sampled(kv, job, 1) == whole).all()


def test_ranks_with_copies_of_the_same_heads_count_once_and_must_agree() -> None:
    rows = sampled(a_kv(torch.float32), a_job(), 1)
    assert (combine([Part(0, rows), Part(0, rows)]).rows == rows).all()
    other = rows.copy()
    other[2, 1] ^= 1
    both = combine([Part(0, rows), Part(0, other)])
    expected = b"".join(rows_to_wire(rows))
    assert bad_values(expected, both, 6) == [(2, 1)]


@DTYPES
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_any_block_overwritten_in_any_layer_on_any_rank_is_found(
    dtype: torch.dtype, num_ranks: int
) -> None:
    kv = (a_kv(torch.float32) * 50).to(dtype)
    job = a_job()
    expected = b"".join(rows_to_wire(sampled(kv, job, 2)))
    step = NUM_HEADS // num_ranks
    for index, block_id in enumerate(job.block_ids):
        for layer in range(NUM_LAYERS):
            for head in range(0, NUM_HEADS, step):
                bad = kv.clone()
                # What another block holds, in the heads of one rank.
                bad[layer, block_id, head : head + step] = kv[layer, 0, head : head + step]
                found = combine([Part(0, sampled(bad, job, num_ranks))])
                assert bad_values(expected, found, 6) == [(index, layer)]


def test_blocks_that_are_swapped_are_found() -> None:
    kv, job = a_kv(torch.float32), a_job()
    expected = b"".join(rows_to_wire(sampled(kv, job, 1)))
    swapped = SampleJob(job.block_ids[[1, 0, 2, 3, 4, 5]], job.keys, job.num_filled)
    found = combine([Part(0, sampled(kv, swapped, 1))])
    assert {bad.block for bad in bad_values(expected, found, 6)} == {0, 1}


def test_right_kv_of_other_tokens_is_found() -> None:
    """The same bytes under another prompt's keys."""
    kv = torch.ones_like(a_kv(torch.float32))
    expected = b"".join(rows_to_wire(sampled(kv, a_job(1), 1)))
    found = combine([Part(0, sampled(kv, a_job(2), 1))])
    assert {bad.block for bad in bad_values(expected, found, 6)} == {0, 1, 2, 3, 4, 5}


def test_every_slot_of_a_block_is_sampled_where_there_are_enough_layers() -> None:
    """One token's KV overwritten in all layers is found in full blocks, whichever token."""
    kv = torch.randn(SIZE, NUM_BLOCKS, 1, SIZE, CONTENT)
    rows = a_sampler(kv, 0).begin(a_job()).rows
    for slot in range(SIZE):
        bad = kv.clone()
        bad[:, 1, :, slot] = 0
        assert (a_sampler(bad, 0).begin(a_job()).rows[1] != rows[1]).any()
