"""Streamed hand-over on both real scheduler classes, with fake executors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from decode_worker.fetch_orders import FetchEnd, FetchResult
from tests.digests import STOP_TOKEN, answer_of
from tests.scheduling.engine_settings import EngineSettings, worker_options
from tests.scheduling.handover_pair import Pair, overwrite

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


@pytest.mark.parametrize(("salts", "num_read"), [("xx", 15), ("xy", 30), (("", "y"), 30)])
def test_no_tenant_finds_the_kv_of_another_one_at_prefill_or_decode(
    pair: Pair, salts: str | tuple[str, str], num_read: int
) -> None:
    """The same document: one session computes and moves it, the other one does too, or not."""
    counters = pair.prefill.scheduler.counters
    for name, salt in zip("ab", salts, strict=True):
        pair.open(name, CONTEXT, cache_salt=salt)
        pair.settle()
    shared = 60 if num_read == 15 else 0
    assert counters.reused_across_sessions_tokens == shared
    assert counters.computed_tokens == 2 * 63 - shared
    assert pair.reader.num_blocks_read == num_read
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


def test_any_block_that_is_overwritten_at_decode_is_read_again() -> None:
    """Each of the 15 blocks of a fetch, in a session of its own; the answer is exact."""
    options = worker_options(min_offer_tokens=8)
    pair = Pair(EngineSettings(token_budget=80, options=options))
    for index in range(15):
        name, context = f"s{index}", [index, *CONTEXT[1:]]
        pair.corrupt_reads(lambda kv, blocks, at=index: overwrite(kv, blocks[at]))
        pair.open(name, context)
        while not pair.sessions[name].results:
            pair.settle_once()
        assert pair.sessions[name].results[0].end is FetchEnd.FAILED
        pair.corrupt_reads(None)
        pair.seal(name, suffix_for(context))
        pair.settle()
        assert pair.is_exact(name)
        assert pair.local_tokens[name] == 0, "a token of a bad read was counted as fetched"
        pair.cancel(name)
    pair.check_empty()
    pair.close()


def test_any_block_that_is_overwritten_at_prefill_is_not_used(pair: Pair) -> None:
    """After the digest and before the read; the session fails, and is never answered wrongly."""
    pair.may_differ = True
    for index in range(17):
        name, context = f"s{index}", [index, *CONTEXT[1:]]
        pair.open(name, context)
        while not pair.sessions[name].under_way:
            pair.step_prefill()
        pair.refuse(name)  # everything crosses at the seal
        pair.seal(name, suffix_for(context))
        while pair.sessions[name].final is None:
            pair.step_prefill()
            pair.refuse(name)
        final = pair.sessions[name].final
        overwrite(pair.prefill.executor.kv, final["remote_block_ids"][0][index])
        pair.deliver_final(name)
        while pair.is_at_decode(name):
            pair.step_decode()
            pair.check_decode()
        assert name in pair.failed
        assert name not in pair.answers
        pair.cancel(name)


def test_offers_have_the_digests_that_are_taken_now(pair: Pair) -> None:
    """They went on with those of before the switch: stale for a session that has changed since."""
    pair.open("a", CONTEXT)
    pair.settle()
    pair.prefill.scheduler.set_digests(are_on=True)  # from nothing
    new = [*CONTEXT[:10], *range(2000, 2030)]
    pair.become("a", new)
    pair.settle()
    assert {result.end for result in pair.sessions["a"].results} == {FetchEnd.FETCHED}
    assert pair.reader.num_blocks_read == 15 + 9 - 2, "what is new was not offered"
    pair.seal("a", suffix_for(new))
    pair.settle()
    assert pair.is_exact("a")
    pair.check_empty()


def test_without_digests_overwritten_kv_becomes_text() -> None:
    """The tests above can fail."""
    options = worker_options(min_offer_tokens=8, kv_digest=False)
    pair = Pair(EngineSettings(options=options), EngineSettings(options=options))
    pair.corrupt_reads(lambda kv, blocks: overwrite(kv, blocks[3]))
    pair.open("a", CONTEXT)
    with pytest.raises(AssertionError, match="wrong KV in decode's cache"):
        pair.settle()
    pair.close()


def test_a_handover_without_a_digest_is_not_used() -> None:
    off = worker_options(min_offer_tokens=8, kv_digest=False)
    pair = Pair(EngineSettings(options=off))
    pair.may_differ = True
    pair.open("a", CONTEXT)
    pair.settle_once(times=6)
    assert {result.end for result in pair.sessions["a"].results} == {FetchEnd.FAILED}
    assert pair.bad_reads
    pair.close()


def test_a_digest_of_other_tokens_is_not_used(pair: Pair) -> None:
    """The router says that the KV is of other tokens than prefill computed, in one place."""
    pair.may_differ = True
    pair.open("a", CONTEXT)
    while not pair.sessions["a"].under_way:
        pair.step_prefill()
    tokens = pair.tokens_to_fetch
    pair.tokens_to_fetch = lambda *args: [*tokens(*args)[:-1], 7]  # type: ignore[method-assign]
    pair.settle_once(times=6)
    assert pair.sessions["a"].results[0].end is FetchEnd.FAILED
    assert pair.bad_reads[0] == "a/1"
