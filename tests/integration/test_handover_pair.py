"""Streamed hand-over on both real scheduler classes, with fake executors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from decode_worker.fetch_orders import FetchEnd, FetchResult
from tests.digests import STOP_TOKEN, answer_of
from tests.scheduling.engine_settings import EngineSettings
from tests.scheduling.handover_pair import Pair

pytestmark = pytest.mark.integration

# 16 blocks of 4 tokens; its first token does not end the answer.
CONTEXT = list(range(1000, 1064))


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def suffix_for(context: list[int]) -> tuple[int, ...]:
    """A question whose answer goes on behind the first token."""
    return next((s,) for s in range(5, 50) if answer_of([*context, s]) != STOP_TOKEN)


def test_all_full_blocks_are_at_decode_at_the_seal(pair: Pair) -> None:
    pair.open("a", CONTEXT)
    pair.settle()
    assert {result.end for result in pair.sessions["a"].results} == {FetchEnd.FETCHED}
    # The last token of an open session is not computed, so its block is not full.
    assert pair.reader.num_blocks_read == 15
    pair.seal("a", suffix_for(CONTEXT))
    pair.settle()
    assert pair.is_exact("a")
    assert pair.local_tokens["a"] == 15 * 4
    assert pair.reader.num_blocks_read == 17, "a block crossed twice"
    pair.check_empty()


def test_an_update_aborts_the_fetch_and_the_common_prefix_stays(pair: Pair) -> None:
    pair.open("a", CONTEXT)
    pair.step_prefill()
    pair.step_prefill()
    pair.deliver("a")
    pair.step_decode()
    new = [*CONTEXT[:10], *range(2000, 2030)]
    pair.become("a", new)
    pair.settle()
    pair.seal("a", suffix_for(new))
    pair.settle()
    assert pair.is_exact("a")
    pair.check_empty()


def test_what_another_session_fetched_does_not_cross_again(pair: Pair) -> None:
    pair.open("a", CONTEXT)
    pair.settle()
    pair.open("b", CONTEXT)
    pair.settle()
    assert pair.reader.num_blocks_read == 15
    assert pair.sessions["b"].results[-1].num_blocks == 0
    for name in "ab":
        pair.seal(name, suffix_for(CONTEXT))
    pair.settle()
    assert pair.is_exact("a")
    assert pair.is_exact("b")
    pair.check_empty()


def test_an_answer_waits_for_the_fetch_of_its_session_and_reads_the_rest_only() -> None:
    pair = Pair(read_steps=5)
    pair.open("a", CONTEXT)
    for _ in range(4):
        pair.step_prefill()
    pair.deliver("a")
    pair.step_decode()
    assert pair.reader.reads
    pair.seal("a", suffix_for(CONTEXT))
    pair.settle()
    assert pair.is_exact("a")
    assert pair.reader.num_blocks_read == 17
    pair.check_empty()
    pair.close()


def test_without_room_at_decode_everything_crosses_at_the_seal() -> None:
    pair = Pair(decode=EngineSettings(num_blocks=20))
    pair.open("a", CONTEXT)
    pair.open("b", CONTEXT[::-1])
    pair.settle()
    ends = {r.end for name in "ab" for r in pair.sessions[name].results}
    assert FetchEnd.REFUSED in ends
    for name, context in (("a", CONTEXT), ("b", CONTEXT[::-1])):
        pair.seal(name, suffix_for(context))
        pair.settle()
        assert pair.is_exact(name)
    pair.check_empty()
    pair.close()


def test_a_fetch_that_ends_after_its_lease_leaves_nothing() -> None:
    pair = Pair(read_steps=3)
    pair.open("a", CONTEXT)
    for _ in range(4):
        pair.step_prefill()
    pair.deliver("a")
    pair.step_decode()
    (offer,) = pair.prefill.offered()
    pair.prefill.end_lease(offer, expired=True)
    pair.step_prefill()
    pair.prefill.cancel("a")  # its blocks are free, and others take them
    pair.sessions.pop("a")
    pair.open("b", CONTEXT[::-1])
    pair.settle(expire=True)
    pair.seal("b", suffix_for(CONTEXT[::-1]))
    pair.settle()
    assert pair.is_exact("b")
    pair.check_empty()
    pair.close()


def test_a_dead_decode_worker_costs_a_lease_and_another_one_takes_everything(pair: Pair) -> None:
    pair.open("a", CONTEXT)
    for _ in range(4):
        pair.step_prefill()
    pair.deliver("a")
    pair.step_decode()
    pair.kill_decode()
    assert pair.prefill.offered(), "prefill was not notified"
    for offer in pair.prefill.offered():
        pair.prefill.end_lease(offer, expired=True)
    pair.settle()
    pair.seal("a", suffix_for(CONTEXT))
    pair.settle()
    assert pair.is_exact("a")
    assert pair.reader.num_blocks_read == 17
    pair.check_empty()


def test_a_failing_read_leaves_nothing_and_the_answer_comes_all_the_same(pair: Pair) -> None:
    pair.reader.fails = True
    pair.open("a", CONTEXT)
    for _ in range(6):
        pair.step_prefill()
        pair.deliver("a")
        pair.step_decode()
        pair.check()
    assert {result.end for result in pair.sessions["a"].results} == {FetchEnd.FAILED}
    pair.reader.fails = False
    for offer in pair.prefill.offered():
        pair.prefill.end_lease(offer, expired=True)
    pair.seal("a", suffix_for(CONTEXT))
    pair.settle()
    assert pair.is_exact("a")
    pair.check_empty()


def test_what_an_answer_brings_in_the_step_of_a_fetch_is_not_read_again() -> None:
    """The base class then finds nothing to read, and runs the fetch like any request."""
    pair = Pair(decode=EngineSettings(num_blocks=80))
    pair.open("a", CONTEXT)
    pair.step_prefill()
    pair.refuse("a")  # nothing of it crosses ahead
    pair.seal("a", suffix_for(CONTEXT))
    while "a" not in pair.prefill.answers():
        pair.step_prefill()
    pair.refuse("a")
    pair.deliver("a")
    pair.step_decode()
    pair.open("b", CONTEXT)
    while not pair.sessions["b"].under_way:
        pair.step_prefill()
    while pair.reader.reads:
        pair.step_decode()
    num_read = pair.reader.num_blocks_read
    pair.deliver("b")
    pair.step_decode()
    pair.check()
    pair.settle()
    assert pair.sessions["b"].results[0] == FetchResult(FetchEnd.FETCHED)
    assert pair.reader.num_blocks_read == num_read
    pair.seal("b", suffix_for(CONTEXT))
    pair.settle()
    assert pair.is_exact("a")
    assert pair.is_exact("b")
    pair.check_empty()
    pair.close()


def test_an_answer_is_not_held_up_by_a_fetch_that_was_given_up() -> None:
    pair = Pair(read_steps=50)
    pair.open("a", CONTEXT)
    for _ in range(4):
        pair.step_prefill()
    pair.deliver("a")
    pair.step_decode()
    changed = [*CONTEXT[:8], *range(2000, 2030)]
    pair.become("a", changed)
    pair.deliver("a")
    pair.seal("a", suffix_for(changed))
    while "a" not in pair.prefill.answers():
        pair.step_prefill()
    pair.deliver("a")
    pair.step_decode()
    assert "a" in pair.decode.requests, "it is read beside what is given up"
    pair.settle()
    assert pair.is_exact("a")
    pair.check_empty()
    pair.close()
