"""Hand-over ahead of the seal, between a real router and fake workers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stream2llm.api.errors import UnavailableError
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.structured_output import refused
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.serving.sessions.token_bytes import num_tokens
from stream2llm.serving.settings.router_spec import RecoveryOptions
from tests.fake_workers import FakeDecode, FakeWorker
from tests.router_ring import Conversation, Ring, named, soon
from tests.stuck_call import StuckCall

GREEDY = pb.SamplingParameters(temperature=0, max_tokens=4, ignore_eos=True)


async def streaming(ring: Ring, prefix: str = "one two three four") -> Conversation:
    """An open session that streams its hand-over, with a prefill worker that offers."""
    ring.prefill.offers_blocks_of = 2
    return await ring.opened(prefix=prefix, sampling=GREEDY, handover=pb.HANDOVER_MODE_STREAMED)


def decodes(ring: Ring) -> list[FakeWorker]:
    return [worker for worker in ring.workers if worker.role == "decode"]


async def fetched_by(ring: Ring) -> FakeDecode:
    """The decode worker that prefetches."""
    events = [asyncio.create_task(w.decode.fetch_called.wait()) for w in decodes(ring)]
    await soon(asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED))
    for event in events:
        event.cancel()
    return next(w.decode for w in decodes(ring) if w.decode.fetched)


def even(tokens: list[int]) -> list[int]:
    return tokens[: len(tokens) - len(tokens) % 2]


async def test_offers_are_fetched_by_the_worker_that_answers(make_ring: Any) -> None:
    ring = await make_ring(num_decode=2)
    session = await streaming(ring)
    chosen = await fetched_by(ring)
    assert chosen.fetched == [even(ring.encode("one two three four"))]
    await session.append("five six")
    await session.next("progress")
    answered = await session.finish()
    prompt = ring.record.sequence
    assert answered.token_ids == ring.brain.answer(prompt, 4)
    (request,) = chosen.requests
    assert request.fetch_session_id == chosen.fetch_sessions[0]
    # Incremental: the second fetch is the first one and more.
    assert chosen.fetched[-1] == prompt[: len(chosen.fetched[-1])]
    await soon(chosen.fetch_session_ended.wait())


async def test_at_the_seal_nothing_is_fetched_ahead(ring: Ring) -> None:
    ring.prefill.offers_blocks_of = 2
    session = await ring.opened(prefix="one two three", sampling=GREEDY)
    await session.append("four")
    await session.finish()
    assert not ring.decode.fetch_sessions
    assert not any(splice.stable_tokens for splice in ring.record.splices)
    assert not ring.decode.requests[0].fetch_session_id
    assert not ring.decode.requests[0].refuse_when_full


async def fetched(ring: Ring) -> Conversation:
    """A session whose first document decode has fetched."""
    session = await streaming(ring, prefix="one")
    await session.append("two three four five")
    await soon(ring.decode.fetch_called.wait())
    return session


async def test_decode_gets_what_it_has_fetched_no_second_time(ring: Ring) -> None:
    answered = await (await fetched(ring)).finish()
    (request,) = ring.decode.requests
    assert request.keep_tokens > 1
    assert request.keep_tokens + num_tokens(request.token_ids) == len(ring.record.sequence) + 1
    assert ring.decode.prompts == [[*ring.record.sequence, answered.token_ids[0]]]
    assert answered.token_ids == ring.brain.answer(ring.record.sequence, 4)


async def test_a_worker_that_does_not_know_what_it_has_fetched_gets_all(ring: Ring) -> None:
    ring.decode.has_forgotten = True
    answered = await (await fetched(ring)).finish()
    assert ring.decode.num_refused == 1
    (request,) = ring.decode.requests
    assert request.keep_tokens == 0
    assert answered.token_ids == ring.brain.answer(ring.record.sequence, 4)
    assert not ring.decode.released


async def test_an_offer_of_tokens_that_have_changed_is_released(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.session_input._LINGER_S", 0)
    ring.prefill.offers_late = True
    session = await streaming(ring, prefix="one")
    await session.append("two three four five")
    await ring.told(2)  # else both changes would travel together
    await session.update("something else")
    await soon(ring.decode.release_called.wait())
    released = [each.handover.kv_transfer_params_json for each in ring.decode.released]
    assert any("#2" in name for name in released)
    await session.finish()


async def test_an_update_aborts_the_fetch_under_way(ring: Ring) -> None:
    ring.decode.may_fetch.clear()
    session = await streaming(ring, prefix="")
    await session.append(("a", "one two three four"))
    await soon(ring.decode.fetch_called.wait())
    ring.decode.may_fetch.set()
    await session.update(("b", "something else"))
    await soon(ring.decode.fetch_aborted.wait())
    await session.update(("b2", "something else again"), named("b"))
    assert (await session.finish()).token_ids == ring.brain.answer(ring.record.sequence, 4)


async def test_the_loss_of_the_prefill_worker_aborts_the_fetch_under_way(make_ring: Any) -> None:
    ring = await make_ring(num_prefill=2, recovery=RecoveryOptions())
    for worker in ring.workers:
        worker.prefill.offers_blocks_of = 2
    ring.decode.may_fetch.clear()
    session = await ring.opened(
        prefix="one two three four", sampling=GREEDY, handover=pb.HANDOVER_MODE_STREAMED
    )
    await soon(ring.decode.fetch_called.wait())
    victim = next(w for w in ring.workers if w.prefill.records)
    await victim.kill()
    await soon(ring.decode.fetch_aborted.wait())
    ring.decode.may_fetch.set()
    answered = await session.finish()
    assert answered.token_ids == ring.brain.answer(ring.encode("one two three four"), 4)


async def test_a_decode_worker_that_takes_no_message_delays_no_update_and_no_seal(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.prefetch_call.ABORT_TIMEOUT_S", 3600)
    call = StuckCall()
    (worker,) = (w for w in ring.router._parts.workers if w.worker_id == "decode-0")
    monkeypatch.setattr(worker.decode, "PrefetchKv", lambda **_: call)
    session = await streaming(ring, prefix="")
    await session.append(("a", "one two three four"))
    await soon(call.writing.wait())
    await session.update(("b", "something else"))
    while ring.record.sequence != ring.encode("something else"):
        await ring.told(ring.record.revision + 1)
    assert (await session.finish()).token_ids == ring.brain.answer(ring.record.sequence, 4)
    assert not call.written


async def test_an_abort_goes_out_when_decode_takes_messages_again(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.prefetch_call.ABORT_TIMEOUT_S", 3600)
    call = StuckCall()
    (worker,) = (w for w in ring.router._parts.workers if w.worker_id == "decode-0")
    monkeypatch.setattr(worker.decode, "PrefetchKv", lambda **_: call)
    session = await streaming(ring, prefix="")
    await session.append(("a", "one two three four"))
    await soon(call.writing.wait())
    await session.update(("b", "something else"))
    call.may_write.set()
    await soon(call.has_abort.wait())
    assert call.kinds == ["open", "fetch", "abort"]
    await session.finish()


async def test_a_cancelled_session_ends_its_fetch(ring: Ring) -> None:
    ring.decode.may_fetch.clear()
    session = await streaming(ring)
    await soon(ring.decode.fetch_called.wait())
    session.call.cancel()
    await soon(ring.decode.fetch_session_ended.wait())
    await soon(ring.record.ended.wait())


async def test_a_decode_worker_that_died_before_the_seal_is_replaced(make_ring: Any) -> None:
    ring = await make_ring(num_decode=2)
    session = await streaming(ring)
    chosen = await fetched_by(ring)
    victim = next(w for w in decodes(ring) if w.decode is chosen)
    other = next(w for w in decodes(ring) if w.decode is not chosen)
    await victim.kill()
    await session.append("five six")
    await soon(other.decode.fetch_called.wait())
    # All of it, from the start.
    assert other.decode.fetched[0][:4] == ring.encode("one two three four")[:4]
    assert (await session.finish()).token_ids == ring.brain.answer(ring.record.sequence, 4)
    assert len(other.decode.requests) == 1


async def test_a_full_decode_worker_leaves_the_session_to_another_one(make_ring: Any) -> None:
    ring = await make_ring(num_decode=2)
    session = await streaming(ring)
    chosen = await fetched_by(ring)
    chosen.is_full = True
    assert (await session.finish()).token_ids == ring.brain.answer(ring.record.sequence, 4)
    other = next(w.decode for w in decodes(ring) if w.decode is not chosen)
    assert not other.requests[0].fetch_session_id, "it pulls everything"
    assert not other.requests[0].refuse_when_full, "the last one has to take it"
    assert not chosen.released
    assert not other.released


async def test_with_one_decode_worker_it_takes_what_it_is_given(ring: Ring) -> None:
    session = await streaming(ring)
    await fetched_by(ring)
    ring.decode.is_full = True
    await session.finish()
    assert not ring.decode.requests[0].refuse_when_full


async def test_a_draining_decode_worker_fetches_nothing_and_the_offer_is_released(
    make_ring: Any,
) -> None:
    ring = await make_ring(num_decode=2)
    for worker in decodes(ring):
        worker.decode.fetch_rejection = UnavailableError("draining", reason="DRAINING")
    session = await streaming(ring)
    events = [asyncio.create_task(w.decode.release_called.wait()) for w in decodes(ring)]
    await soon(asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED))
    for event in events:
        event.cancel()
    assert (await session.finish()).token_ids == ring.brain.answer(ring.record.sequence, 4)


async def test_in_update_mode_only_what_is_stable_is_offered(ring: Ring) -> None:
    session = await streaming(ring, prefix="")
    await session.update(("a", "one two"), ("b", "three four"))
    await ring.told(1)
    await session.update(named("a"), ("c", "something else"))
    await ring.told(2)
    sure = pb.Document(id="c", stays=1.0)
    await session.update(pb.Document(id="a", stays=0.95), sure, ("d", "five"))
    await ring.told(3)
    await session.finish()
    first, second, third, seal = ring.record.splices
    a, c = ring.encode("one two"), ring.encode("something else")
    assert first.stable_tokens == 0
    assert len(a) <= second.stable_tokens < len(a) + len(c)
    assert third.stable_tokens == len(a) + len(c)
    assert seal.stable_tokens == len(ring.record.sequence)


@pytest.mark.parametrize("mode", [pb.HANDOVER_MODE_STREAMED, pb.HANDOVER_MODE_AT_SEAL])
async def test_decode_has_a_structured_output_as_soon_as_the_session_is_open(
    ring: Ring, mode: Any
) -> None:
    sampling = pb.SamplingParameters()
    sampling.CopyFrom(GREEDY)
    sampling.structured_output.regex = "[a-z]+"
    session = await ring.opened(prefix="one", sampling=sampling, handover=mode)
    await soon(ring.decode.fetch_session_came.wait())
    await ring.told(1)
    (opening,) = ring.decode.fetch_openings
    assert opening.structured_output == sampling.structured_output
    assert ring.record.open.sampling.structured_output == sampling.structured_output
    await session.append("two")
    await session.finish()
    (request,) = ring.decode.requests
    assert request.sampling.structured_output == sampling.structured_output
    assert request.fetch_session_id == opening.fetch_session_id


async def test_what_prefill_cannot_compile_ends_the_session_at_once(ring: Ring) -> None:
    ring.prefill.failures["open"] = refused("cannot be compiled: too many rules")
    sampling = pb.SamplingParameters(structured_output=pb.StructuredOutput(regex="a"))
    session = await ring.opened(prefix="one", sampling=sampling)
    error = from_rpc_error(await session.failure())
    assert (error.reason, error.field) == ("BAD_STRUCTURED_OUTPUT", "sampling.structured_output")
    assert "cannot be compiled: too many rules" in error.message
    assert len(ring.prefill.records) == 1, "another worker would refuse it, too"
