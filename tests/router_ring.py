"""A real router between a real client stub and fake workers, all in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import REGISTRY, CollectorRegistry

from router.server import Router
from stream2llm.api.final_status import FinalStatus
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.trace_context import Metadata
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import inference_pb2_grpc
from stream2llm.security.certificates import open_certificates
from stream2llm.security.tls import PeerChannels
from stream2llm.serving.http.metrics_http import MetricsServer
from stream2llm.serving.settings.observability_options import ObservabilityOptions
from stream2llm.serving.settings.router_spec import (
    AdmissionMode,
    RecoveryOptions,
    RouterLimits,
    RouterSpec,
)
from stream2llm.serving.settings.security_options import SecurityOptions
from stream2llm.serving.settings.worker_spec import ClusterView, DrainingWorker
from tests.fake_workers import (
    MAX_MODEL_LEN,
    NUM_BLOCKS,
    Brain,
    FakeDecode,
    FakePrefill,
    FakeWorker,
    PrefillRecord,
)

# A bound against a hang, on machines that are busy too.
TIMEOUT_S = 60.0


async def soon(awaitable: Any) -> Any:
    """What must happen without a sleep."""
    async with asyncio.timeout(TIMEOUT_S):
        return await awaitable


class Conversation:
    """One StreamGenerate RPC, event by event."""

    def __init__(self, stub: Any, metadata: Metadata | None = None) -> None:
        self.call = stub.StreamGenerate(metadata=metadata)
        self._final = FinalStatus(self.call)
        self._sequence = 0

    async def send(self, **event: Any) -> None:
        self._sequence += 1
        request = pb.StreamGenerateRequest(sequence=self._sequence, **event)
        # A session that the router has ended takes nothing more; its answer says why.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await soon(self.call.write(request))

    async def open(self, prefix: str = "", suffix: str = "", **fields: Any) -> None:
        plain = pb.PlainTemplate(prefix=pb.Content(text=prefix), suffix=pb.Content(text=suffix))
        await self.send(open=pb.OpenSession(plain=plain, **fields))

    async def append(self, *documents: Any) -> None:
        await self.send(append=pb.AppendContext(documents=map(as_document, documents)))

    async def update(self, *documents: Any) -> None:
        await self.send(update=pb.UpdateContext(documents=map(as_document, documents)))

    async def seal(self, **fields: Any) -> None:
        await self.send(seal=pb.SealContext(**fields))

    async def close_half(self) -> None:
        await soon(self.call.done_writing())

    async def next(self, kind: str | None = None) -> Any:
        """The next event, or the next of one kind."""
        while True:
            message = await soon(self.call.read())
            assert message is not grpc.aio.EOF, "the answer ended"
            name = message.WhichOneof("event")
            if kind in (None, name):
                return getattr(message, name)

    async def deltas(self, num_tokens: int) -> list[Any]:
        """The next deltas that together have so many tokens, however these travelled."""
        found: list[Any] = []
        while sum(len(delta.token_ids) for delta in found) < num_tokens:
            found.append(await self.next("delta"))
        return found

    async def rest(self) -> list[Any]:
        """Every message up to the end of the RPC."""
        messages = []
        while (message := await soon(self.call.read())) is not grpc.aio.EOF:
            messages.append(message)
        return messages

    async def answer(self) -> Answered:
        return Answered.of(await self.rest())

    async def finish(self, **fields: Any) -> Answered:
        """Seals, and reads the answer."""
        await self.seal(**fields)
        return await self.answer()

    async def failure(self) -> grpc.aio.AioRpcError:
        try:
            messages = await self.rest()
        except grpc.aio.AioRpcError as error:
            return await self._final.of(error)
        raise AssertionError(f"the session did not fail: {messages}")


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason that our error has."""
    ours = from_rpc_error(error)
    assert ours is not None, error
    return ours.reason


@dataclass
class Answered:
    """An answer as a client puts it together."""

    text: str
    token_ids: list[int]
    deltas: list[Any]
    finished: Any

    @classmethod
    def of(cls, messages: list[Any]) -> Answered:
        assert messages[-1].WhichOneof("event") == "finished"
        deltas = [m.delta for m in messages if m.WhichOneof("event") == "delta"]
        return cls(
            "".join(delta.text for delta in deltas),
            [token_id for delta in deltas for token_id in delta.token_ids],
            deltas,
            messages[-1].finished,
        )


def as_document(document: Any) -> Any:
    """A (id, text) pair, a bare text, or a Document."""
    if isinstance(document, pb.Document):
        return document
    document_id, text = document if isinstance(document, tuple) else ("", document)
    return pb.Document(id=document_id, text=text)


def named(document_id: str) -> Any:
    """A document sent before, by id alone."""
    return pb.Document(id=document_id)


class Ring:
    """The router, its workers, and a client's stub."""

    async def told(self, revision: int, num_sessions: int = 1) -> None:
        """Waits until prefill knows of that change of its newest of so many sessions.

        The router sends on together what comes together.
        """
        while len(self.prefill.records) < num_sessions:
            self.prefill.session_came.clear()
            await soon(self.prefill.session_came.wait())
        while self.record.revision < revision:
            self.record.spliced.clear()
            await soon(self.record.spliced.wait())

    def __init__(
        self,
        router: Router,
        address: Any,
        brain: Brain,
        workers: list[FakeWorker],
        channel: grpc.aio.Channel,
    ) -> None:
        self.router = router
        self.address = address
        self.brain = brain
        self.workers = workers
        self.version = 0
        self.channel = channel
        self.stub = inference_pb2_grpc.StreamingInferenceServiceStub(self.channel)

    @property
    def prefill(self) -> FakePrefill:
        return self.worker("prefill").prefill

    @property
    def decode(self) -> FakeDecode:
        return self.worker("decode").decode

    @property
    def num_open(self) -> int:
        """The sessions that the router has."""
        return sum(self.router._parts.sessions.by_phase().values())

    @property
    def record(self) -> PrefillRecord:
        return self.prefill.records[-1]

    def worker(self, role: str) -> FakeWorker:
        return next(worker for worker in self.workers if worker.role == role)

    def show(self, *workers: FakeWorker, draining: dict[str, float] | None = None) -> None:
        """Gives the router a new view; `draining` has the seconds that workers are given."""
        self.version += 1
        drains = tuple(starmap(DrainingWorker, (draining or {}).items()))
        addresses = tuple(w.address for w in workers)
        self.router.set_view(ClusterView(self.version, addresses, draining=drains))

    def drain(self, worker: FakeWorker, left_s: float) -> None:
        """Gives the router a view in which that worker drains, and all others can be used."""
        others = (each for each in self.workers if each is not worker)
        self.show(*others, draining={worker.worker_id: left_s})

    def converse(self, metadata: Metadata | None = None) -> Conversation:
        return Conversation(self.stub, metadata)

    async def opened(self, *args: Any, **fields: Any) -> Conversation:
        """A session whose open was sent."""
        session = self.converse()
        await session.open(*args, **fields)
        return session

    async def asked(self, *args: Any, **fields: Any) -> Conversation:
        """A session that was opened and sealed."""
        session = await self.opened(*args, **fields)
        await session.seal()
        return session

    async def answer_to(self, *args: Any, **fields: Any) -> Answered:
        """The answer of such a session."""
        return await (await self.asked(*args, **fields)).answer()

    async def refusal_of(self, *args: Any, **fields: Any) -> grpc.aio.AioRpcError:
        """Its error."""
        return await (await self.asked(*args, **fields)).failure()

    def encode(self, text: str) -> list[int]:
        return list(self.router._parts.text.tokenizer.encode(text))

    def encode_written(self, text: str) -> list[int]:
        """What a chat template wrote: control tokens and text."""
        backend = self.router._parts.text.tokenizer.backend
        return list(backend.encode(text, add_special_tokens=False).ids)

    def decode_text(self, token_ids: list[int]) -> str:
        backend = self.router._parts.text.tokenizer.backend
        return str(backend.decode(token_ids, skip_special_tokens=True))

    def metric(self, name: str, **labels: str) -> float | None:
        return self.router.registry.get_sample_value(name, {"model": "tiny", **labels})

    async def lose_router(self) -> None:
        """Takes the router's server away in the middle of everything."""
        server, self.router._server = self.router._server, None
        await server.stop(None)

    async def return_router(self) -> None:
        """A successor of the lost server, at its address."""
        port = int(self.address.grpc_address.rpartition(":")[2])
        self.router.spec = replace(self.router.spec, port=port)
        await self.router._start_grpc()

    async def nothing_is_open(self) -> None:
        """Every session has ended and every worker has got its place back."""
        assert await self.router._parts.sessions.wait_empty(TIMEOUT_S)
        assert all(worker.num_sessions == 0 for worker in self.router._parts.workers)


class NoMetricsServer(MetricsServer):
    """A real one takes half a second to stop."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry = REGISTRY,
        tls: Any = None,
        guard: Any = None,
    ) -> None:
        self.address = f"{host}:0"

    def close(self) -> None:
        pass


@asynccontextmanager
async def a_ring(
    model_path: Path,
    *,
    num_prefill: int = 1,
    num_decode: int = 1,
    num_mixed: int = 0,
    script: list[int] | None = None,
    max_model_len: int = MAX_MODEL_LEN,
    drain_timeout_s: float = 0.05,
    serve_metrics: bool = False,
    prefill_blocks: int = NUM_BLOCKS,
    decode_blocks: int = NUM_BLOCKS,
    security: SecurityOptions | None = None,
    ttft_slo_ms: int | None = None,
    admission: AdmissionMode = "always",
    observability: ObservabilityOptions | None = None,
    cluster_token: str = "",
    router_index: int = 0,
    num_routers: int = 1,
    recovery: RecoveryOptions = RecoveryOptions(max_wait_s=0),  # noqa: B008 - frozen
    **limits: Any,
) -> AsyncIterator[Ring]:
    """Everything started, and everything gone afterwards."""
    security = security or SecurityOptions()
    certificates = open_certificates(security.tls_files)
    brain = Brain(script)
    workers = [
        FakeWorker(f"{role}-{n}", role, brain, num_blocks, certificates, cluster_token)
        for role, count, num_blocks in (
            ("prefill", num_prefill, prefill_blocks),
            ("decode", num_decode, decode_blocks),
            ("mixed", num_mixed, prefill_blocks),
        )
        for n in range(count)
    ]
    spec = RouterSpec(
        router_id="router-0",
        host="127.0.0.1",
        port=0,
        metrics_port=0,
        model_name="tiny",
        model_path=str(model_path),
        max_model_len=max_model_len,
        limits=RouterLimits(**limits),
        handover="at_seal",
        drain_timeout_s=drain_timeout_s,
        security=security,
        ttft_slo_ms=ttft_slo_ms,
        admission=admission,
        observability=observability or ObservabilityOptions(),
        cluster_token=cluster_token,
        router_index=router_index,
        num_routers=num_routers,
        recovery=recovery,
    )
    router = Router(spec, serve_metrics=MetricsServer if serve_metrics else NoMetricsServer)
    address = await router.start()
    # Large on the client's side: it is the server's limit that is tested.
    channel, _ = PeerChannels(certificates, 1 << 26).open(address.grpc_address)
    ring = Ring(router, address, brain, workers, channel)
    try:
        for worker in workers:
            await worker.start()
        ring.show(*workers)
        yield ring
        await ring.nothing_is_open()
    finally:
        await ring.channel.close()
        await router.stop()
        for worker in workers:
            await worker.kill()
