"""A client that goes away, at every moment: both worker RPCs end, KV is released."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from router.placed_prefill import PlacedPrefill
from router.recovery import Failure
from router.status import WORKER_LOST
from stream2llm.api.errors import InternalError, UnavailableError
from tests.router_ring import Conversation, Ring, soon

Moment = Callable[[Ring, Conversation], Awaitable[None]]


async def before_the_open(ring: Ring, session: Conversation) -> None:
    await soon(session.call.wait_for_connection())


async def before_the_first_document(ring: Ring, session: Conversation) -> None:
    await session.open("hello")
    await session.next("accepted")
    await soon(ring.prefill.session_came.wait())


async def in_mid_prefill(ring: Ring, session: Conversation) -> None:
    ring.prefill.may_compute.clear()
    await session.open("hello")
    await session.append("fox")
    await soon(ring.prefill.session_came.wait())
    await soon(ring.record.spliced.wait())


async def after_the_seal(ring: Ring, session: Conversation) -> None:
    ring.prefill.may_sample.clear()
    await session.open("hello")
    await session.seal()
    await soon(ring.prefill.session_came.wait())
    await soon(ring.record.sealed.wait())


async def between_prefill_and_decode(ring: Ring, session: Conversation) -> None:
    ring.decode.may_accept.clear()
    await session.open("hello")
    await session.seal()
    await session.next("delta")
    await soon(ring.decode.called.wait())


async def while_decode_reads_the_kv(ring: Ring, session: Conversation) -> None:
    ring.decode.hold_after_steps = 0
    await session.open("hello")
    await session.seal()
    await session.next("delta")
    await soon(ring.decode.called.wait())


async def in_mid_decode(ring: Ring, session: Conversation) -> None:
    ring.decode.hold_after_steps = 2
    await session.open("hello")
    await session.seal()
    await session.deltas(3)


MOMENTS: list[Moment] = [
    before_the_open,
    before_the_first_document,
    in_mid_prefill,
    after_the_seal,
    between_prefill_and_decode,
    while_decode_reads_the_kv,
    in_mid_decode,
]


@pytest.mark.parametrize("how", ["cancel", "close the channel"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
async def test_everything_ends_when_the_client_goes(ring: Ring, moment: Moment, how: str) -> None:
    session = ring.converse()
    await moment(ring, session)
    if how == "cancel":
        session.call.cancel()
    else:
        await ring.channel.close()
    await ring.nothing_is_open()
    for record in ring.prefill.records:
        await soon(record.ended.wait())
    if ring.decode.requests:
        await soon(ring.decode.cancelled.wait())
    if moment is not before_the_open:  # it may go before the router has seen it
        assert ring.metric("stream2llm_sessions_total", outcome="cancelled") == 1


@pytest.mark.parametrize("moment", [between_prefill_and_decode, in_mid_decode])
async def test_a_hand_over_that_decode_was_asked_for_is_left_to_it(
    ring: Ring, moment: Moment
) -> None:
    """It may have begun to read, whether or not the router has heard so; it says when it will not."""
    session = ring.converse()
    await moment(ring, session)
    session.call.cancel()
    await soon(ring.decode.cancelled.wait())
    await ring.nothing_is_open()
    assert not ring.decode.released


async def test_a_client_that_goes_as_prefill_is_lost_is_not_served_on(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One turn of the router's loop brings both."""

    async def lose_worker(prefill: PlacedPrefill) -> Failure:
        prefill._live.place.on_evicted()  # cancels the session's task, as gRPC does
        lost = UnavailableError("lost", reason=WORKER_LOST)
        return Failure(lost, "prefill", prefill.worker, was_held=True)

    monkeypatch.setattr(PlacedPrefill, "watch", lose_worker)
    ring.decode.may_accept.clear()
    session = ring.converse()
    await session.open("hello")
    await session.seal()
    await soon(ring.prefill.session_came.wait())
    await soon(ring.record.ended.wait())
    await ring.nothing_is_open()
    assert ring.metric("stream2llm_sessions_total", outcome="cancelled") == 1
    assert len(ring.prefill.records) == 1
    await ring.channel.close()


async def test_a_release_is_tried_at_another_decode_worker(make_ring: Any) -> None:
    ring = await make_ring(num_decode=2)
    first, second = (w.decode for w in ring.workers if w.role == "decode")
    first.rejection = first.release_failure = InternalError("no")
    await ring.refusal_of("hello")
    await soon(second.release_called.wait())
    assert len(first.released) <= 1


async def test_other_sessions_go_on(ring: Ring) -> None:
    ring.decode.hold_after_steps = 1
    stays, goes = ring.converse(), ring.converse()
    for session in (stays, goes):
        ring.decode.called.clear()
        await session.open("hello")
        await session.seal()
        await session.next("delta")
        await soon(ring.decode.called.wait())
    goes.call.cancel()
    await soon(ring.decode.cancelled.wait())
    ring.decode.hold_after_steps = None
    ring.decode.may_step.set()
    assert (await stays.answer()).finished.usage.completion_tokens > 1
