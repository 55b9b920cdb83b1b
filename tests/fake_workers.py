"""Workers without engines: real gRPC servers, a deterministic answer, no sleeps.

A test steers them with events (clear one to hold something back), reads what
they saw, and plugs in failures. They check the protocol they are spoken to in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from stream2llm.api.errors import Stream2LLMError, UnavailableError
from stream2llm.api.grpc_options import server_options
from stream2llm.api.handover import ACCEPTED_METADATA, HELD_METADATA, NO_FETCHED_TOKENS
from stream2llm.api.rpc_status import to_status
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.engine.cache_log import CacheLog
from stream2llm.engine.cache_service import CacheService
from stream2llm.engine.worker_sessions import WorkerSessions
from stream2llm.security.certificates import CertificateStore
from stream2llm.security.grpc_access import RequireClusterToken
from stream2llm.security.tls import add_port
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.mux.service import MultiplexService
from stream2llm.serving.rpc.stream_writer import PeerGoneError
from stream2llm.serving.sessions.token_bytes import token_list
from stream2llm.serving.settings.security_options import AuthOptions
from stream2llm.serving.settings.worker_spec import PREFILLING, Role, WorkerAddress
from stream2llm.serving.system.clock import SystemClock
from tests.tiny_model import EOS

MAX_MODEL_LEN = 1000
NUM_BLOCKS = 100
BLOCK_SIZE = 16
HASH_ROOT = bytes(32)


@dataclass
class Brain:
    """The model of a ring: scripted, or a function of the whole sequence."""

    script: list[int] | None = None
    vocab_size: int = 290
    # Tokens of an answer that nothing else ends. Few, because each costs the ring a step.
    num_tokens: int = 40
    # Whether answers with other seeds are others.
    heeds_seeds: bool = False

    def token(self, sequence: list[int], index: int, seed: int = 0) -> int:
        """The answer's token `index`; `sequence` is everything before it."""
        if self.script is not None:
            return self.script[index] if index < len(self.script) else EOS
        if index >= self.num_tokens:
            return EOS
        mixed = seed if self.heeds_seeds else 0
        for token_id in sequence:
            mixed = (mixed * 31 + token_id + 7) % 1_000_003
        return 3 + mixed % (self.vocab_size - 3)

    def answer(self, prompt: list[int], num_tokens: int, seed: int = 0) -> list[int]:
        sequence = list(prompt)
        for index in range(num_tokens):
            sequence.append(self.token(sequence, index, seed))
        return sequence[len(prompt) :]

    def step(self, sequence: list[int], index: int, sampling: Any) -> worker_pb2.TokenStep:
        """One token as a worker reports it."""
        token_id = self.token(sequence, index, sampling.seed)
        step = worker_pb2.TokenStep(token_ids=[token_id])
        if sampling.HasField("logprobs"):
            step.logprobs.add(sampled=pb.Logprob(token_id=token_id, logprob=-0.5, rank=1))
        ends = token_id == EOS and not sampling.ignore_eos
        if ends or token_id in sampling.stop_token_ids:
            step.finish_reason = pb.FINISH_REASON_STOP_TOKEN
            step.stop_token_id = token_id
        return step


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


def writes(
    handler: Callable[..., AsyncGenerator[Any, None]],
) -> Callable[..., Coroutine[Any, Any, None]]:
    """A method of a servicer that writes to its context what the generator yields."""

    async def handle(self: Any, request: Any, context: Any) -> None:
        async with aclosing(handler(self, request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return handle


@contextmanager
def _session(sessions: WorkerSessions) -> Iterator[None]:
    """As a worker's: refused while it drains, and ended when the time of a drain is over."""
    sessions.require_open()
    with sessions.one():
        yield


@dataclass
class PrefillRecord:
    """What one PrefillSession saw."""

    open: Any = None
    # What the RPC carried.
    metadata: dict[str, str] = field(default_factory=dict)
    sequence: list[int] = field(default_factory=list)
    splices: list[Any] = field(default_factory=list)
    hand_over: bool | None = None
    ttft_left_ms: int | None = None
    # How many of the last tokens are the answer's.
    answer_tokens: int = 0
    # Not 0 where the answer goes on at this worker.
    answer_max_tokens: int = 0
    # An offer that waits for the next splice.
    late_offer: Any = None
    spliced: asyncio.Event = field(default_factory=asyncio.Event)
    sealed: asyncio.Event = field(default_factory=asyncio.Event)
    # gRPC also ends the requests of a cancelled RPC, so only `ended` is sure.
    half_closed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    computed: int = 0
    invalidated: int = 0

    @property
    def revision(self) -> int:
        """The revision of the last change."""
        return self.splices[-1].revision if self.splices else 0


class FakePrefill(worker_pb2_grpc.PrefillServiceServicer):
    """Computes everything at once, but for what the test holds back."""

    def __init__(self, brain: Brain) -> None:
        self.brain = brain
        self.records: list[PrefillRecord] = []
        self.session_came = asyncio.Event()
        self.may_compute = _open_gate()
        self.may_sample = _open_gate()
        # For answers that go on here: cleared after so many steps, if that is set.
        self.may_step = _open_gate()
        self.hold_after_steps: int | None = None
        # A DelayReason's number, put into every progress.
        self.delay = pb.DELAY_REASON_UNSPECIFIED
        self.sessions = WorkerSessions()
        # Whether the stable part is offered ahead of the seal, in blocks of so many tokens.
        self.offers_blocks_of = 0
        # Offers come ahead of the next splice's progress: the router has sent that splice already.
        self.offers_late = False
        # Raised at "open", "splice", "seal" or "first_token"; once the key matches.
        self.failures: dict[str, Stream2LLMError | Exception] = {}

    @writes
    async def PrefillSession(  # noqa: N802
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncGenerator[Any, None]:
        record = PrefillRecord(metadata=dict(context.invocation_metadata()))
        self.records.append(record)
        self.session_came.set()
        try:
            with _session(self.sessions):
                async for request in request_iterator:
                    async for response in self._on_request(record, request, context):
                        yield response
                record.half_closed.set()
        except UnavailableError as error:
            await context.abort_with_status(to_status(error))
        finally:
            record.ended.set()

    async def _on_request(
        self, record: PrefillRecord, request: Any, context: Any
    ) -> AsyncIterator[Any]:
        event = request.WhichOneof("event")
        await self._maybe_fail(event, context)
        if event == "open":
            assert record.open is None
            record.open = request.open
            await context.send_initial_metadata(HELD_METADATA)
            return
        splice = request.splice if event == "splice" else request.seal.splice
        self._apply(record, splice)
        await self.may_compute.wait()
        uncomputed = self._compute(record, is_sealed=event == "seal")
        if event == "splice":
            if record.late_offer is not None:
                yield record.late_offer
                record.late_offer = None
            yield worker_pb2.PrefillSessionResponse(progress=self._progress(record))
            if self.offers_blocks_of and splice.stable_tokens >= self.offers_blocks_of:
                offer = self._offer(record, splice)
                if self.offers_late:
                    record.late_offer = offer
                else:
                    yield offer
            return
        record.hand_over = request.seal.hand_over
        record.ttft_left_ms = request.seal.ttft_left_ms
        record.answer_tokens = request.seal.answer_tokens
        record.answer_max_tokens = request.seal.answer_max_tokens
        record.sealed.set()
        await self.may_sample.wait()
        await self._maybe_fail("first_token", context)
        first = self._first_token(record, uncomputed)
        yield first
        async for step in self._answer(record, first.first_token.step, context):
            yield worker_pb2.PrefillSessionResponse(step=step)

    async def _answer(self, record: PrefillRecord, step: Any, context: Any) -> AsyncIterator[Any]:
        """The steps behind the first one, where the seal asks for them."""
        sequence, num_steps = list(record.sequence), 0
        for index in range(record.answer_tokens + 1, record.answer_max_tokens):
            if step.finish_reason:
                return
            sequence += step.token_ids
            if num_steps == self.hold_after_steps:
                self.may_step.clear()
            await self.may_step.wait()
            await self._maybe_fail("step", context)
            step, num_steps = self.brain.step(sequence, index, record.open.sampling), num_steps + 1
            if index + 1 == record.answer_max_tokens and not step.finish_reason:
                step.finish_reason = pb.FINISH_REASON_LENGTH
            yield step

    async def _maybe_fail(self, event: str, context: Any) -> None:
        failure = self.failures.get(event)
        if isinstance(failure, Stream2LLMError):
            await context.abort_with_status(to_status(failure))
        elif failure is not None:
            raise failure

    def _apply(self, record: PrefillRecord, splice: Any) -> None:
        assert record.open is not None
        # Changes that came together have the number of the last one.
        assert splice.revision > record.revision
        assert splice.keep_tokens <= len(record.sequence)
        record.invalidated += max(
            min(record.computed, len(record.sequence)) - splice.keep_tokens, 0
        )
        record.computed = min(record.computed, splice.keep_tokens)
        record.sequence[splice.keep_tokens :] = token_list(splice.token_ids, "token_ids")
        record.splices.append(splice)
        record.spliced.set()

    def _compute(self, record: PrefillRecord, *, is_sealed: bool) -> int:
        target = len(record.sequence) - (0 if is_sealed else 1)
        uncomputed = max(target - record.computed, 0)
        record.computed += uncomputed
        return uncomputed

    def _progress(self, record: PrefillRecord) -> Any:
        return worker_pb2.PrefillProgress(
            revision=record.revision,
            known_tokens=len(record.sequence),
            prefilled_tokens=record.computed,
            computed_tokens=record.computed + record.invalidated,
            invalidated_tokens=record.invalidated,
            delay=self.delay,
        )

    def _offer(self, record: PrefillRecord, splice: Any) -> Any:
        num_tokens = splice.stable_tokens - splice.stable_tokens % self.offers_blocks_of
        name = f'{{"offer":"{record.open.session_id}#{splice.revision}"}}'
        handover = worker_pb2.Handover(kv_transfer_params_json=name, num_blocks=1)
        offer = worker_pb2.HandoverOffer(
            revision=splice.revision, num_tokens=num_tokens, handover=handover
        )
        return worker_pb2.PrefillSessionResponse(offer=offer)

    def _first_token(self, record: PrefillRecord, uncomputed: int) -> Any:
        step = self.brain.step(record.sequence, record.answer_tokens, record.open.sampling)
        first = worker_pb2.FirstToken(
            step=step, progress=self._progress(record), uncomputed_at_seal_tokens=uncomputed
        )
        if record.hand_over and not step.finish_reason:
            first.handover.kv_transfer_params_json = f'{{"session":"{record.open.session_id}"}}'
            first.handover.num_blocks = 3
        return worker_pb2.PrefillSessionResponse(first_token=first)


class FakeDecode(worker_pb2_grpc.DecodeServiceServicer, worker_pb2_grpc.HandoverServiceServicer):
    """One token a step, as many as the test lets through."""

    def __init__(self, brain: Brain) -> None:
        self.brain = brain
        self.sessions = WorkerSessions()
        self.requests: list[Any] = []
        # The sequences that they continue.
        self.prompts: list[list[int]] = []
        # The tokens that the RPCs of fetches know, and how many fetches they have had.
        self._known: dict[str, tuple[list[int], int]] = {}
        # Whether it refuses prompts that it should know, and how many it has refused.
        self.has_forgotten, self.num_refused = False, 0
        # What the RPCs carried, in the order of their beginnings.
        self.metadata: list[dict[str, str]] = []
        self.released: list[Any] = []
        self.called = asyncio.Event()
        self.release_called = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.may_accept = _open_gate()
        self.may_step = _open_gate()
        # After so many steps `may_step` is cleared.
        self.hold_after_steps: int | None = None
        self.rejection: Stream2LLMError | None = None
        # When it has said that it takes the hand-over.
        self.late_rejection: Stream2LLMError | None = None
        self.release_failure: Stream2LLMError | None = None
        self.may_release = _open_gate()
        self.ends_without_reason = False
        # Token sequences that were to be prefetched, and what became of it.
        self.fetched: list[list[int]] = []
        # How sessions were opened that prefetch, or have a structured output.
        self.fetch_openings: list[worker_pb2.OpenPrefetch] = []
        self.fetch_session_came = asyncio.Event()
        self.may_fetch = _open_gate()
        self.fetch_called = asyncio.Event()
        self.fetch_aborted = asyncio.Event()
        self.fetch_session_ended = asyncio.Event()
        self.fetch_rejection: Stream2LLMError | None = None
        # Refuses answers that another worker may take.
        self.is_full = False
        self.tokens_per_step = 1

    @property
    def fetch_sessions(self) -> list[str]:
        """By which their answers name them."""
        return [each.fetch_session_id for each in self.fetch_openings]

    @writes
    async def Decode(self, request: Any, context: Any) -> AsyncGenerator[Any, None]:  # noqa: N802
        try:
            prompt = self._prompt_of(request)
            self.prompts.append(prompt)
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.called.set()
            await self.may_accept.wait()
            if request.refuse_when_full:
                self.sessions.require_open()
            if self.is_full and request.refuse_when_full:
                raise UnavailableError("no room", reason="FULL")
            if self.rejection is not None:
                await context.abort_with_status(to_status(self.rejection))
            await context.send_initial_metadata(ACCEPTED_METADATA)
            if self.late_rejection is not None:
                await context.abort_with_status(to_status(self.late_rejection))
            with _session(self.sessions):
                async for step in self._steps(request, prompt):
                    yield worker_pb2.DecodeResponse(step=step)
        except UnavailableError as error:
            await context.abort_with_status(to_status(error))
        except (asyncio.CancelledError, GeneratorExit, PeerGoneError):
            # The others when that comes while a step, or the initial metadata, is written.
            self.cancelled.set()
            raise

    @writes
    async def PrefetchKv(  # noqa: N802
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncGenerator[Any, None]:
        self.metadata.append(dict(context.invocation_metadata()))
        tokens: list[int] = []
        name, num_fetches, is_fetching = "", 0, False
        try:
            async for request in request_iterator:
                if self.fetch_rejection is not None:
                    await context.abort_with_status(to_status(self.fetch_rejection))
                event = request.WhichOneof("event")
                if event == "open":
                    name = request.open.fetch_session_id
                    self.fetch_openings.append(request.open)
                    self.fetch_session_came.set()
                elif event == "fetch":
                    assert not is_fetching, "the previous fetch has not ended"
                    assert request.fetch.keep_tokens <= len(tokens)
                    is_fetching = True
                    new = token_list(request.fetch.token_ids, "token_ids")
                    tokens[request.fetch.keep_tokens :] = new
                    self.fetched.append(list(tokens))
                    num_fetches += 1
                    self._known[name] = (list(tokens), num_fetches)
                    self.fetch_called.set()
                    if self.may_fetch.is_set():
                        is_fetching = False
                        end = worker_pb2.FETCH_END_FETCHED
                        yield worker_pb2.PrefetchKvResponse(end=end, num_blocks=1)
                else:
                    self.fetch_aborted.set()
                    if is_fetching:  # else it comes behind the end, and there is none to tell
                        is_fetching = False
                        yield worker_pb2.PrefetchKvResponse(end=worker_pb2.FETCH_END_ABORTED)
        finally:
            self.fetch_session_ended.set()

    def _prompt_of(self, request: Any) -> list[int]:
        tokens = token_list(request.token_ids, "token_ids")
        if not request.keep_tokens:
            return tokens
        known, num_fetches = self._known.get(request.fetch_session_id, ([], 0))
        if num_fetches != request.num_fetches or self.has_forgotten:
            self.num_refused += 1
            raise UnavailableError("other fetches", reason=NO_FETCHED_TOKENS)
        assert request.keep_tokens <= len(known)
        return known[: request.keep_tokens] + tokens

    async def _steps(self, request: Any, prompt: list[int]) -> AsyncIterator[Any]:
        sequence, sampling = list(prompt), request.sampling
        index, num_steps = request.answer_tokens, 0
        while not self.ends_without_reason:
            if num_steps == self.hold_after_steps:
                self.may_step.clear()
            await self.may_step.wait()
            merged = worker_pb2.TokenStep()
            while len(merged.token_ids) < self.tokens_per_step and not merged.finish_reason:
                step = self.brain.step(sequence, index, sampling)
                sequence.extend(step.token_ids)
                index += 1
                if index == sampling.max_tokens and not step.finish_reason:
                    step.finish_reason = pb.FINISH_REASON_LENGTH
                merged.MergeFrom(step)
            yield merged
            num_steps += 1
            if merged.finish_reason:
                return

    async def ReleaseHandover(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.release_called.set()
        await self.may_release.wait()
        self.released.append(request)
        if self.release_failure is not None:
            await context.abort_with_status(to_status(self.release_failure))
        return worker_pb2.ReleaseHandoverResponse()


class FakeStatus(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    async def GetWorkerStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        info = pb.WorkerInfo(
            worker_id=self._worker.worker_id,
            role=self._worker.role,
            ready=self._worker.is_ready,
            num_sessions=1,
            num_kv_blocks=self._worker.num_blocks,
            num_kv_blocks_held=7,
            block_size=16,
        )
        return worker_pb2.GetWorkerStatusResponse(worker=info)


class FakeWorker:
    """One worker process; `kill` takes its server away in the middle of everything."""

    def __init__(
        self,
        worker_id: str,
        role: Role,
        brain: Brain,
        num_blocks: int = NUM_BLOCKS,
        certificates: CertificateStore | None = None,
        cluster_token: str = "",
    ) -> None:
        self.worker_id = worker_id
        self.role = role
        self.num_blocks = num_blocks
        self._certificates = certificates
        self._cluster_token = cluster_token
        # Whether it says that its engine lives.
        self.is_ready = True
        self.prefill = FakePrefill(brain)
        self.decode = FakeDecode(brain)
        # What it says that it has cached.
        self.cache = CacheLog()
        self._server: Any = None
        self.address: WorkerAddress

    async def start(self, port: int = 0, pid: int = 1) -> WorkerAddress:
        guard = Guards(AuthOptions(), SystemClock()).of("grpc")
        token = self._cluster_token
        admit = [RequireClusterToken(guard, token)] if token else []
        self._server = grpc.aio.server(interceptors=admit, options=server_options(1 << 24))
        multiplexed = MultiplexService(1 << 24)
        if self.role in PREFILLING:
            worker_pb2_grpc.add_PrefillServiceServicer_to_server(self.prefill, multiplexed)
        else:
            worker_pb2_grpc.add_DecodeServiceServicer_to_server(self.decode, multiplexed)
            worker_pb2_grpc.add_HandoverServiceServicer_to_server(self.decode, self._server)
        worker_pb2_grpc.add_MultiplexServiceServicer_to_server(multiplexed, self._server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(FakeStatus(self), self._server)
        cache = CacheService(self.cache, BLOCK_SIZE, HASH_ROOT)
        worker_pb2_grpc.add_CacheServiceServicer_to_server(cache, self._server)
        port = add_port(self._server, f"127.0.0.1:{port}", self._certificates, for_peers=True)
        await self._server.start()
        self.address = WorkerAddress(
            worker_id=self.worker_id,
            role=self.role,
            grpc_address=f"127.0.0.1:{port}",
            metrics_address="127.0.0.1:1",
            pids=(pid,),
            max_model_len=MAX_MODEL_LEN,
            num_kv_blocks=self.num_blocks,
            block_size=BLOCK_SIZE,
        )
        return self.address

    async def drain(self, timeout_s: float) -> None:
        """Refuses new sessions, waits for the open ones, and ends the rest."""
        await (self.prefill if self.role in PREFILLING else self.decode).sessions.drain(timeout_s)

    async def kill(self) -> None:
        await self._server.stop(None)
