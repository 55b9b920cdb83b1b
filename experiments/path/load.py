"""What the clients of a subject and its workers do, in a process of their own.

The workers are those of the router's tests: real gRPC, no engine, and nothing to wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import grpc

from experiments.path.null_relay import NullClient, NullWorker
from experiments.path.pace import Pace
from experiments.path.subject import MAX_MODEL_LEN
from stream2llm.api.tasks import TaskGroup
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1 import inference_pb2_grpc
from stream2llm.serving.settings.worker_spec import Role, WorkerAddress
from tests.fake_workers import Brain, FakeDecode, FakeWorker

_NUM_CONNECTIONS = 8
_ROLES: tuple[Role, ...] = ("prefill", "decode")
# Full blocks of what was appended are offered to decode ahead of the seal.
_BLOCK_TOKENS = 32
# A token of the answer.
_WORD = 1004
_IDS = [1000 + number for number in range(300)]
_SENTENCE = "Prefill overlaps with retrieval, so the answer starts with the last document. "
_TEXT = (_SENTENCE * 17)[:1300]


class _PacedDecode(FakeDecode):
    """Its answers keep the pace."""

    def __init__(self, brain: Brain, pace: Pace) -> None:
        super().__init__(brain)
        self._pace = pace

    async def _steps(self, request: Any, prompt: list[int]) -> AsyncIterator[Any]:
        num_steps = 0
        async for step in super()._steps(request, prompt):
            num_steps += 1
            await self._pace.wait(num_steps)
            yield step


class Workers:
    """The workers of one subject, and the null worker."""

    def __init__(self) -> None:
        brain = Brain([_WORD] * MAX_MODEL_LEN)
        self.pace = Pace()
        self._prefill, self._decode = (
            FakeWorker(f"{role}-0", role, brain, num_blocks=1 << 20) for role in _ROLES
        )
        self._prefill.prefill.offers_blocks_of = _BLOCK_TOKENS
        self._decode.decode = _PacedDecode(brain, self.pace)
        self.null = NullWorker(self.pace)
        self._server = grpc.aio.server()
        self.null.add_to(self._server)

    async def start(self) -> tuple[tuple[WorkerAddress, ...], str]:
        """The addresses of the workers, and of the null worker."""
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        addresses = [await each.start() for each in (self._prefill, self._decode)]
        long = (replace(each, max_model_len=MAX_MODEL_LEN) for each in addresses)
        return tuple(long), f"127.0.0.1:{port}"

    async def stop(self) -> None:
        """Ends them."""
        for each in (self._prefill, self._decode):
            await each.kill()
        await self._server.stop(None)

    def forget(self) -> None:
        """Drops the records of the sessions so far."""
        for each in (self._prefill, self._decode):
            each.prefill.records.clear()
            each.decode.requests.clear()
            each.decode.fetched.clear()


class Clients:
    """Clients of one subject, over some connections."""

    def __init__(self, router: str, null: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            [grpc.aio.insecure_channel(address, options) for _ in range(_NUM_CONNECTIONS)]
            for address in (router, null)
        ]
        self._channels = [*channels[0], *channels[1]]
        self._stubs = [
            inference_pb2_grpc.StreamingInferenceServiceStub(each) for each in channels[0]
        ]
        self._null = [NullClient(each) for each in channels[1]]

    async def close(self) -> None:
        """Closes the connections, which ends what is open."""
        for each in self._channels:
            await each.close()

    def null(self, number: int) -> NullClient:
        """The client with that number."""
        return self._null[number % len(self._null)]

    async def opened(self, number: int, **sampling: Any) -> Session:
        """A session of the client with that number, when it was accepted."""
        session = Session(self._stubs[number % len(self._stubs)].StreamGenerate())
        plain = pb.PlainTemplate(prefix=pb.Content(token_ids=pb.TokenIds(ids=_IDS[:1])))
        sampled = pb.SamplingParameters(ignore_eos=True, temperature=0, **sampling)
        await session.send(open=pb.OpenSession(plain=plain, sampling=sampled))
        await session.until(lambda message: message.HasField("accepted"))
        return session


class Session:
    """One StreamGenerate RPC."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._sequence = count(1)

    async def send(self, **event: Any) -> int:
        """Sends an event; returns its sequence number."""
        sequence = next(self._sequence)
        await self._call.write(pb.StreamGenerateRequest(sequence=sequence, **event))
        return sequence

    async def append(self, *, text: bool) -> None:
        """Appends a document of 300 ids, or of 1,300 characters; returns when it is prefilled."""
        content = {"text": _TEXT} if text else {"token_ids": pb.TokenIds(ids=_IDS)}
        sent = await self.send(append=pb.AppendContext(documents=[pb.Document(**content)]))

        def is_prefilled(message: Any) -> bool:
            figures = message.progress
            has_all = figures.prefilled_tokens == figures.received_tokens - 1
            return bool(has_all and figures.last_sequence >= sent)

        await self.until(is_prefilled)

    async def seal(self) -> None:
        """Seals the context."""
        await self.send(seal=pb.SealContext())

    async def until(self, is_it: Callable[[Any], bool]) -> Any:
        """The first message for which that is so."""
        while not is_it(message := await self._call.read()):
            assert message is not grpc.aio.EOF, "the session has ended"
        return message

    async def token_counts(self) -> AsyncIterator[int]:
        """For each message with tokens, how many it has."""
        while (message := await self._call.read()) is not grpc.aio.EOF:
            if message.HasField("delta"):
                yield len(message.delta.token_ids)

    async def finish(self) -> None:
        """Seals, and returns when the answer has ended."""
        await self.seal()
        await self.until(lambda message: message.HasField("finished"))
        await self._call.done_writing()
        assert await self._call.read() is grpc.aio.EOF

    def cancel(self) -> None:
        """Leaves."""
        self._call.cancel()


class Received:
    """How many tokens each client of a relay has."""

    def __init__(self, num_clients: int) -> None:
        self._num_tokens = [0] * num_clients
        self._changed = asyncio.Event()

    async def read(self, client: int, counts: AsyncIterator[int]) -> None:
        """Reads a client's messages, of so many tokens each, to the end."""
        async for num_tokens in counts:
            self._num_tokens[client] += num_tokens
            self._changed.set()

    async def wait(self, num_tokens: int) -> None:
        """Returns when each client has so many."""
        while min(self._num_tokens) < num_tokens:
            self._changed.clear()
            await self._changed.wait()


@asynccontextmanager
async def clients_of(router: str, null: str) -> AsyncIterator[Clients]:
    """Clients, until they have left."""
    clients = Clients(router, null)
    try:
        yield clients
    finally:
        await clients.close()


async def at_once(num_workers: int, total: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Does the work `total` times, some at once."""
    waiting = iter(range(total))

    async def some() -> None:
        for number in waiting:
            await work(number)

    async with TaskGroup() as group:
        for _ in range(num_workers):
            group.create_task(some())
