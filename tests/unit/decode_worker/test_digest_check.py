"""Which reads of KV are used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from decode_worker.digest_check import BadKv, ReadCheck, job_for
from decode_worker.fetch_orders import FetchOrder, FinalOrder
from stream2llm.engine.kv_digest import DIGEST_KEY, BlockKeys, Part, Rows

SIZE, NUM_LAYERS = 4, 3
ROWS = np.arange(15, dtype=np.uint16).reshape(5, NUM_LAYERS) * 1000


def a_transfer(digest: bytes | None = None, **changes: Any) -> dict[str, Any]:
    """Five blocks, the last of which has two tokens."""
    whole = {"pp_size": 1, "dcp_size": 1, "remote_num_tokens": 18}
    rows = ROWS.astype("<u2").tobytes() if digest is None else digest
    return {**whole, "remote_block_ids": [[7, 8, 9, 4, 5]], DIGEST_KEY: rows, **changes}


def judge(*parts: Rows, transfer: dict[str, Any] | None = None) -> BadKv | None:
    """Each part is from a rank with heads of its own."""
    check = ReadCheck(num_ranks=len(parts))
    for head, rows in enumerate(parts):
        check.take({"r": [Part(head, rows)]})
    return check.judge("r", transfer or a_transfer())


def test_what_agrees_is_used_whole_or_its_last_blocks() -> None:
    assert judge(ROWS) is None
    for num_read in range(1, 6):
        assert judge(ROWS[-num_read:]) is None


def test_ranks_add_up() -> None:
    assert judge(ROWS - 7, np.full_like(ROWS, 7)) is None
    assert judge(ROWS, np.full_like(ROWS, 7)) is not None


def test_any_other_value_is_found_and_named() -> None:
    for block in range(5):
        for layer in range(NUM_LAYERS):
            rows = ROWS.copy()
            rows[block, layer] ^= 1
            bad = judge(rows)
            assert bad == BadKv(1, f"1 values differ: block {block} layer {layer}")
            assert judge(rows[block:]) == bad


def test_a_log_line_names_a_few() -> None:
    bad = judge(ROWS + 1)
    assert bad.num_blocks == 5
    assert bad.what.startswith("15 values differ: block 0 layer 0, ")
    assert bad.what.endswith("block 2 layer 1, ...")


@pytest.mark.parametrize("digest", [b"", b"x", bytes(2 * 14), bytes(2 * 16), bytes(2 * 20)])
def test_a_digest_that_is_not_of_these_blocks_is_bad(digest: bytes) -> None:
    assert judge(ROWS, transfer=a_transfer(digest)).num_blocks == 5


def test_every_rank_must_have_sampled() -> None:
    check = ReadCheck(num_ranks=2)
    check.take({"r": [Part(0, ROWS)]})
    assert check.judge("r", a_transfer()) == BadKv(5, "1 of 2 ranks have sampled")
    assert ReadCheck(num_ranks=1).judge("r", a_transfer()) is not None
    assert judge(ROWS, ROWS[:2]) == BadKv(5, "the ranks have sampled different blocks")


def test_what_is_forgotten_is_not_taken_for_the_next_read() -> None:
    check = ReadCheck(num_ranks=1)
    check.take({"r": [Part(0, ROWS + 1)]})
    check.forget("r")
    check.take({"r": [Part(0, ROWS)]})
    assert check.judge("r", a_transfer()) is None


def test_the_last_blocks_are_sampled_by_their_keys() -> None:
    tokens = list(range(18))
    keys = BlockKeys(SIZE).to_wire(tokens)
    for order in (FinalOrder("s", keys), FetchOrder("s", 5, 0.0, keys)):
        job = job_for(order, a_transfer(), [20, 21], SIZE)
        assert list(job.block_ids) == [20, 21]
        assert job.keys.tobytes() == np.frombuffer(keys, "<u8")[-2:].tobytes()
        assert list(job.num_filled) == [4, 2]


def test_without_the_keys_of_its_tokens_nothing_can_be_compared() -> None:
    keys = BlockKeys(SIZE).to_wire(list(range(16)))
    for order in (None, FinalOrder("s"), FinalOrder("s", keys)):
        assert job_for(order, a_transfer(), [20], SIZE) is None
    assert job_for(FinalOrder("s", keys), a_transfer(remote_num_tokens=16), [1] * 5, SIZE) is None


def test_it_travels() -> None:
    bad = BadKv(2, "why")
    assert BadKv.from_wire(bad.to_wire()) == bad
    assert BadKv.from_wire(None) is None
    assert BadKv.from_wire({}) is None
