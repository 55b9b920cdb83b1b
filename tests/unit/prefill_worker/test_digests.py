"""Which blocks are sampled, and which rows travel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from prefill_worker.digests import BlockDigests, Written
from stream2llm.engine.kv_digest import BlockKeys

SIZE = 4
TOKENS = list(range(100, 118))  # four blocks and two tokens


class Engine:
    """Counts samples: each sampled block has another row."""

    def __init__(self) -> None:
        self.digests = BlockDigests(SIZE)
        self.num_sampled = 0
        self.computed: dict[str, int] = {}

    def step(
        self,
        name: str,
        num_after: int,
        block_ids: Sequence[int],
        tokens: Sequence[int] = TOKENS,
        *,
        sealed: bool = False,
    ) -> list[int]:
        """Computes up to there; returns the sampled blocks."""
        before = self.computed.get(name, 0)
        written = Written(
            name,
            tokens,
            lambda first, stop: block_ids[first:stop],
            before,
            num_after,
            is_sealed=sealed,
        )
        job = self.digests.plan([written])
        self.computed[name] = num_after
        self.digests.touch(name, num_after)
        if job is None:
            return []
        rows = np.arange(self.num_sampled, self.num_sampled + len(job.keys), dtype=np.uint16)
        self.num_sampled += len(rows)
        self.digests.take(rows[:, None])
        return list(job.block_ids)

    def cut(self, name: str, num_tokens: int) -> None:
        """Drops KV behind these tokens."""
        self.computed[name] = num_tokens
        self.digests.touch(name, num_tokens)

    def rows(self, name: str, block_ids: Sequence[int]) -> list[int]:
        """What travels with these blocks."""
        return list(np.frombuffer(self.digests.digest(name, block_ids), "<u2"))


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_a_block_is_sampled_in_the_step_that_completes_it(engine: Engine) -> None:
    assert engine.step("a", 3, [5]) == []
    assert engine.step("a", 9, [5, 6, 7]) == [5, 6]
    assert engine.step("a", 17, [5, 6, 7, 8, 9]) == [7, 8]
    assert engine.rows("a", [5, 6, 7, 8]) == [0, 1, 2, 3]
    assert engine.digests.num_sampled_blocks("a") == 4


def test_the_last_block_of_a_sealed_session_is_sampled_as_it_is(engine: Engine) -> None:
    engine.step("a", 17, [5, 6, 7, 8, 9])
    assert engine.rows("a", [5, 6, 7, 8, 9]) == []
    assert engine.step("a", 18, [5, 6, 7, 8, 9], sealed=True) == [9]
    assert engine.rows("a", [5, 6, 7, 8, 9]) == [0, 1, 2, 3, 4]


def test_a_cached_block_keeps_its_row_for_those_who_share_it(engine: Engine) -> None:
    engine.step("a", 16, [5, 6, 7, 8])
    engine.digests.forget("a")
    engine.cut("b", 8)
    assert engine.digests.behind == {"b"}
    assert engine.step("b", 12, [5, 6, 3]) == [3]
    assert engine.digests.behind == frozenset()
    assert engine.rows("b", [5, 6, 3]) == [0, 1, 4]


def test_a_block_with_other_content_has_no_row(engine: Engine) -> None:
    engine.step("a", 16, [5, 6, 7, 8])
    engine.digests.forget("a")
    engine.cut("b", 8)
    other = [1, *TOKENS[1:]]
    assert engine.step("b", 8, [5, 6], other) == [5, 6]
    assert engine.rows("b", [5, 6]) == [4, 5]


def test_what_is_computed_again_is_sampled_again(engine: Engine) -> None:
    """The same tokens in the same block, but KV may differ in its last bits."""
    engine.step("a", 16, [5, 6, 7, 8])
    engine.cut("a", 6)
    assert engine.digests.num_sampled_blocks("a") == 1
    assert engine.rows("a", [5, 6]) == []
    assert engine.step("a", 16, [5, 6, 7, 8]) == [6, 7, 8]
    assert engine.rows("a", [5, 6, 7, 8]) == [0, 4, 5, 6]


def test_kv_that_was_copied_into_a_block_is_sampled(engine: Engine) -> None:
    engine.step("a", 16, [5, 6, 7, 8])
    engine.cut("a", 4)
    engine.digests.overwritten([6, 7])
    engine.cut("a", 12)
    assert engine.digests.behind == {"a"}
    assert engine.step("a", 12, [5, 6, 7]) == [6, 7]


def test_two_sessions_that_complete_the_same_block(engine: Engine) -> None:
    def written(name: str) -> Written:
        return Written(name, TOKENS, lambda first, stop: [5, 6][first:stop], 0, 8, is_sealed=False)

    job = engine.digests.plan([written("a"), written("b")])
    assert list(job.block_ids) == [5, 6]
    keys = BlockKeys(SIZE)
    keys.extend(TOKENS, 2)
    assert list(job.keys) == [keys[0], keys[1]]


def test_samples_must_be_of_the_blocks_that_were_asked_for(engine: Engine) -> None:
    with pytest.raises(AssertionError, match="1 blocks were sampled of 0"):
        engine.digests.take(np.zeros((1, 2), dtype=np.uint16))
