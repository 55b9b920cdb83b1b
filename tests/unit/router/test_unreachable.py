"""Workers that cannot be reached: what never arrived, another worker may take."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router.background import Background
from router.prefetch_call import PrefetchCall
from router.status import WORKER_LOST, NeverArrivedError, worker_error
from router.worker import Worker
from router.worker_calls import DecodeCall, PrefillCall
from router.workers import WorkerPool
from stream2llm.api.errors import InvalidRequestError, UnavailableError
from stream2llm.api.rpc_status import to_status
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import worker_pb2
from stream2llm.security.tls import PeerChannels
from stream2llm.serving.sessions.prefix import as_tokens
from stream2llm.serving.settings.worker_spec import ClusterView, Role, WorkerAddress
from tests.fake_workers import Brain, FakeWorker
from tests.router_ring import Ring, soon

PLAIN_CHANNELS = PeerChannels(None, 1 << 20)
RELEASE = worker_pb2.ReleaseHandoverRequest(session_id="s")


@pytest.fixture
def unreachable() -> Iterator[Callable[[str, Role], WorkerAddress]]:
    """Addresses of workers whose process is not there."""
    with ExitStack() as stack:

        def make(worker_id: str, role: Role) -> WorkerAddress:
            # Bound, so that no other process gets the port, but nothing listens.
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            return WorkerAddress(
                worker_id=worker_id,
                role=role,
                grpc_address=f"127.0.0.1:{taken.getsockname()[1]}",
                metrics_address="127.0.0.1:1",
                pids=(2,),
                max_model_len=1000,
                num_kv_blocks=100,
                block_size=16,
            )

        yield make


def show(ring: Ring, *gone: WorkerAddress) -> None:
    """The ring's own workers, and others that are not there."""
    ring.version += 1
    there = tuple(worker.address for worker in ring.workers)
    ring.router.set_view(ClusterView(ring.version, (*there, *gone)))


def view_of(ring: Ring, worker_id: str) -> Worker:
    return next(w for w in ring.router._parts.workers if w.worker_id == worker_id)


# -- how it is known ------------------------------------------------------------------


async def fetches(pool: WorkerPool, worker: Worker) -> None:
    worker_call = PrefetchCall(pool, worker, "s-1")
    try:
        await worker_call.fetch(as_tokens([1, 2]), worker_pb2.Handover())
    finally:
        worker_call.close()


async def prefills(pool: WorkerPool, worker: Worker) -> None:
    worker_call = PrefillCall(pool, worker)
    try:
        await worker_call.open("s", SamplingParameters())
    finally:
        worker_call.close()


async def decodes(pool: WorkerPool, worker: Worker) -> None:
    worker_call = DecodeCall(pool, worker)
    try:
        async for _ in worker_call.steps(worker_pb2.DecodeRequest()):
            pass
    finally:
        worker_call.close()
        assert not worker_call.owns_handover
        assert not worker_call.is_accepted


@pytest.mark.parametrize("rpc", [fetches, prefills, decodes])
async def test_grpc_says_that_nothing_has_arrived(rpc: Any, unreachable: Any) -> None:
    """Its words, which no documentation promises."""
    background = Background()
    pool = WorkerPool(PLAIN_CHANNELS, background)
    pool.set_view(ClusterView(1, (unreachable("gone", "decode"),)))
    (worker,) = pool
    with pytest.raises(NeverArrivedError, match="worker gone was lost") as caught:
        await soon(rpc(pool, worker))
    assert caught.value.reason == WORKER_LOST
    assert worker.is_suspect
    pool.stop_tasks()
    await pool.close()
    await background.close(0)


@pytest.mark.parametrize("details", ["Socket closed", "recvmsg:Connection reset by peer"])
def test_a_connection_that_broke_may_have_brought_it_there(details: str) -> None:
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details
    )
    assert not isinstance(worker_error(error, "decode-0"), NeverArrivedError)


# -- what becomes of a session ----------------------------------------------------------


@pytest.mark.parametrize("mode", [pb.HANDOVER_MODE_AT_SEAL, pb.HANDOVER_MODE_STREAMED])
async def test_at_the_seal_another_decode_worker_takes_the_answer(
    ring: Ring, unreachable: Any, mode: Any
) -> None:
    # Less loaded and first by name, so it is the one that is chosen.
    show(ring, unreachable("a-decode", "decode"))
    answered = await ring.answer_to(
        "hello", sampling=pb.SamplingParameters(max_tokens=4), handover=mode
    )
    assert answered.token_ids == ring.brain.answer(ring.record.sequence, 4)
    assert len(ring.decode.requests) == 1
    assert not ring.decode.released
    assert view_of(ring, "a-decode").is_suspect


async def test_a_worker_that_has_fetched_ahead_and_is_gone_leaves_the_answer_to_another(
    make_ring: Any,
) -> None:
    ring = await make_ring(num_decode=2)
    ring.prefill.offers_blocks_of = 2
    sampling = pb.SamplingParameters(max_tokens=4)
    streamed = pb.HANDOVER_MODE_STREAMED
    session = await ring.opened("one two three four", sampling=sampling, handover=streamed)
    first, second = (w for w in ring.workers if w.role == "decode")
    await soon(first.decode.fetch_called.wait())
    await first.kill()
    assert (await session.finish()).token_ids == ring.brain.answer(ring.record.sequence, 4)
    (request,) = second.decode.requests
    # Nothing of the second one, where the loss was noticed before the seal.
    assert request.fetch_session_id not in first.decode.fetch_sessions


async def test_without_another_decode_worker_the_session_fails_and_its_kv_is_released(
    ring: Ring,
) -> None:
    worker = ring.worker("decode")
    port = int(worker.address.grpc_address.rsplit(":", 1)[1])
    await worker.kill()
    error = await ring.refusal_of("hello")
    assert "decode-0 was lost" in error.details()
    await worker.start(port=port)
    await soon(ring.decode.release_called.wait())
    assert ring.decode.released[0].handover.num_blocks == 3


async def test_a_hand_over_that_a_decode_worker_took_and_then_refused_goes_to_no_other_one(
    make_ring: Any,
) -> None:
    """Prefill has been notified and has freed its blocks: the other one gets a new hand-over."""
    ring = await make_ring(num_decode=2)
    for worker in ring.workers:
        worker.decode.late_rejection = UnavailableError("draining", reason="DRAINING")
    assert (
        "draining" in (await ring.refusal_of("hello", handover=pb.HANDOVER_MODE_STREAMED)).details()
    )
    assert [len(w.decode.requests) for w in ring.workers] == [0, 1, 1]
    assert [record.answer_tokens for record in ring.prefill.records] == [0, 1]


async def test_at_the_open_another_prefill_worker_takes_the_session(
    ring: Ring, unreachable: Any
) -> None:
    show(ring, unreachable("a-prefill", "prefill"))
    answered = await ring.answer_to("hello", sampling=pb.SamplingParameters(max_tokens=4))
    assert answered.token_ids == ring.brain.answer(ring.record.sequence, 4)
    assert view_of(ring, "a-prefill").is_suspect


async def test_a_worker_that_goes_during_the_open_leaves_the_session_to_another(
    make_ring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open may have arrived, but nothing was computed."""
    ring = await make_ring(num_prefill=2)
    opened_at: list[str] = []
    open_there = PrefillCall.open

    async def open_and_lose(call: PrefillCall, *args: Any, **options: Any) -> None:
        await open_there(call, *args, **options)
        opened_at.append(call.worker.worker_id)
        if len(opened_at) == 1:
            raise call._pool.failure(call.worker, broken_connection())

    monkeypatch.setattr(PrefillCall, "open", open_and_lose)
    answered = await ring.answer_to("hello", sampling=pb.SamplingParameters(max_tokens=4))
    assert len(answered.token_ids) == 4
    assert answered.finished.restarts == 0
    assert len(set(opened_at)) == 2


async def test_without_another_prefill_worker_the_session_fails_at_once(ring: Ring) -> None:
    await ring.worker("prefill").kill()
    session = await ring.opened("hello")
    assert "prefill-0 was lost" in (await session.failure()).details()


async def test_an_offer_that_never_arrived_is_fetched_by_the_next_decode_worker(
    ring: Ring, unreachable: Any
) -> None:
    show(ring, unreachable("a-decode", "decode"))
    ring.prefill.offers_blocks_of = 2
    session = await ring.opened("one two three four", handover=pb.HANDOVER_MODE_STREAMED)
    await soon(ring.decode.fetch_called.wait())
    assert not ring.decode.released
    await session.finish()


# -- releases -----------------------------------------------------------------------------


class Pauses:
    """Replaces sleep: reports each pause to the test, and continues on its signal."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[float] = asyncio.Queue()
        self.may_go_on = asyncio.Semaphore(0)

    async def __call__(self, pause_s: float) -> None:
        self.asked.put_nowait(pause_s)
        await self.may_go_on.acquire()


@pytest.fixture
async def decode() -> Any:
    worker = FakeWorker("decode-0", "decode", Brain())
    await worker.start()
    yield worker
    await worker.kill()


async def released(pool: WorkerPool, background: Background) -> None:
    """Waits for the release that runs."""
    pool.stop_tasks()
    await soon(background.close(5))


async def test_a_release_that_no_worker_takes_is_tried_again_after_longer_and_longer_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pauses, background = Pauses(), Background()
    pool = WorkerPool(PLAIN_CHANNELS, background, pauses)
    pool.release_handover(RELEASE)  # there is no worker at all
    asked = []
    for _ in range(3):
        asked.append(await soon(pauses.asked.get()))
        pauses.may_go_on.release()
    await released(pool, background)
    assert asked == sorted(asked)
    assert asked[0] > 0
    assert "handover_not_released session_id=s" in caplog.text
    assert pauses.asked.empty()


async def test_a_worker_that_is_back_after_the_pause_does_the_release(decode: Any) -> None:
    pauses, background = Pauses(), Background()
    pool = WorkerPool(PLAIN_CHANNELS, background, pauses)
    pool.release_handover(RELEASE)
    await soon(pauses.asked.get())
    pool.set_view(ClusterView(1, (decode.address,)))
    pauses.may_go_on.release()
    await soon(decode.decode.release_called.wait())
    await released(pool, background)
    assert len(decode.decode.released) == 1
    await pool.close()


async def test_a_release_that_is_wrong_is_not_tried_again(decode: Any) -> None:
    decode.decode.release_failure = InvalidRequestError("names no remote engine")
    pauses, background = Pauses(), Background()
    pool = WorkerPool(PLAIN_CHANNELS, background, pauses)
    pool.set_view(ClusterView(1, (decode.address,)))
    pool.release_handover(RELEASE)
    await released(pool, background)
    assert len(decode.decode.released) == 1
    assert pauses.asked.empty()
    await pool.close()


async def test_a_probe_that_is_refused_pauses_before_the_next_one(decode: Any) -> None:
    decode.is_ready = False
    pauses, background = Pauses(), Background()
    pool = WorkerPool(PLAIN_CHANNELS, background, pauses)
    pool.set_view(ClusterView(1, (decode.address,)))
    (worker,) = pool
    lost = to_status(UnavailableError("its engine died", reason=WORKER_LOST))
    pool.failure(worker, FakeError(lost))
    assert await soon(pauses.asked.get()) > 0
    decode.is_ready = True
    assert worker.is_suspect
    pauses.may_go_on.release()
    await soon(worker.probe)
    assert not worker.is_suspect
    await pool.close()


def broken_connection() -> FakeError:
    """Returns the error that gRPC raises when a connection breaks under an RPC."""
    return FakeError(
        SimpleNamespace(
            code=grpc.StatusCode.UNAVAILABLE, details="Socket closed", trailing_metadata=()
        )
    )


class FakeError:
    """A failed RPC's status."""

    def __init__(self, status: Any) -> None:
        self.code = lambda: status.code
        self.details = lambda: status.details
        self.trailing_metadata = lambda: status.trailing_metadata
