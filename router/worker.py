"""One worker as the router sees it: its channel, its sessions there, and whether it drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import grpc

from router.placement import WorkerView
from router.quotas import newer_mean_s
from router.work_queue import WorkQueue
from stream2llm.api.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.security.tls import PeerChannels
from stream2llm.serving.mux.channel import MuxChannel
from stream2llm.serving.settings.worker_spec import WorkerAddress

_PROBE_TIMEOUT_S = 10.0


class Link:
    """A channel to one worker, and how many use it: the sessions that began on it, and other RPCs."""

    def __init__(self, address: WorkerAddress, channels: PeerChannels) -> None:
        self.channel, self.certificates = channels.open(address.grpc_address)
        calls = channels.calls(self.channel)
        # What belongs to sessions travels in one stream.
        self._multiplexed = MuxChannel(calls, channels.max_message_bytes)
        self.prefill: Any = worker_pb2_grpc.PrefillServiceStub(self._multiplexed)
        self.decode: Any = worker_pb2_grpc.DecodeServiceStub(self._multiplexed)
        self.handover: Any = worker_pb2_grpc.HandoverServiceStub(calls)
        self.status: Any = worker_pb2_grpc.WorkerServiceStub(calls)
        self.cache: Any = worker_pb2_grpc.CacheServiceStub(calls)
        self._num_users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def count(self, change: int) -> None:
        """Adds or subtracts sessions and other RPCs."""
        self._num_users += change
        if self._num_users:
            self._idle.clear()
        else:
            self._idle.set()

    @contextmanager
    def held(self) -> Iterator[Self]:
        """Keeps the channel open for an RPC that belongs to no session."""
        self.count(1)
        try:
            yield self
        finally:
            self.count(-1)

    async def close_when_idle(self) -> None:
        """Waits for its RPCs, then closes the channel; cancelled, it closes it at once."""
        try:
            await self._idle.wait()
        finally:
            await self.close()

    async def close(self) -> None:
        """Ends its RPCs."""
        await self._multiplexed.aclose()
        await self.channel.close()


class Worker:
    """One worker process: the link to it, and the number of this router's sessions there."""

    def __init__(self, address: WorkerAddress, channels: PeerChannels) -> None:
        self.address = address
        self.is_suspect = False
        self.num_sessions = 0
        # Those among them whose answers go on here: a mixed worker's.
        self.num_answering = 0
        # Work that is queued; not of decode workers.
        self.queue = WorkQueue()
        # Seconds that a token of an answer takes; None: not known.
        self.token_s: float | None = None
        # When its drain ends the sessions that are still there, by the router's clock; None: it
        # does not drain.
        self.drain_by_s: float | None = None
        # Runs while the worker is suspect.
        self.probe: asyncio.Task[None] | None = None
        # Follows what it has cached, as long as it is in the view.
        self.cache_watch: asyncio.Task[None] | None = None
        # That of new sessions; those that are open stay on theirs.
        self.link = Link(address, channels)

    @property
    def worker_id(self) -> str:
        return self.address.worker_id

    @property
    def node(self) -> str:
        """The host that others reach it at."""
        return self.address.grpc_address.rpartition(":")[0]

    @property
    def answers(self) -> bool:
        """Whether it goes on with the answers of the sessions that it prefills."""
        return self.address.role == "mixed"

    @property
    def prefill(self) -> Any:
        return self.link.prefill

    @property
    def decode(self) -> Any:
        return self.link.decode

    @contextmanager
    def answering(self) -> Iterator[None]:
        """One of its sessions goes on with its answer here."""
        self.num_answering += 1
        try:
            yield
        finally:
            self.num_answering -= 1

    def acquire(self) -> Lease:
        """Adds one session, which has to take its stub before anything else happens."""
        return Lease(self)

    def took(self, step_s: float, num_tokens: int) -> None:
        """A step of an answer took so long, and had so many tokens."""
        token_s = step_s / max(num_tokens, 1)
        before_s = token_s if self.token_s is None else self.token_s
        self.token_s = newer_mean_s(before_s, token_s)

    def view(self) -> WorkerView:
        """Returns the properties that placement considers."""
        return WorkerView(
            self.worker_id,
            self.address.role,
            not self.is_suspect,
            self.num_sessions,
            self.num_answering,
        )

    def stop_tasks(self) -> None:
        """Stops checking whether the worker answers, and following what it has cached."""
        for task in (self.probe, self.cache_watch):
            if task is not None:
                task.cancel()

    def is_same_process(self, address: WorkerAddress) -> bool:
        """Whether an address of a newer view still means this process."""
        return (self.address.grpc_address, self.address.pids) == (
            address.grpc_address,
            address.pids,
        )


class Lease:
    """One session's place at a worker, on the link of that moment; `release` may be called again."""

    def __init__(self, worker: Worker) -> None:
        self._worker: Worker | None = worker
        self._link = worker.link
        self._count(worker, 1)

    def release(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self._count(worker, -1)

    def _count(self, worker: Worker, change: int) -> None:
        worker.num_sessions += change
        self._link.count(change)


async def answers(worker: Worker) -> bool:
    """Whether it serves again; may take as long as gRPC needs to connect."""
    try:
        with worker.link.held() as link:
            response = await link.status.GetWorkerStatus(
                worker_pb2.GetWorkerStatusRequest(),
                wait_for_ready=True,  # gRPC reconnects, with its own back-off
                timeout=_PROBE_TIMEOUT_S,
            )
    except grpc.aio.AioRpcError as error:
        # The worker itself has sent any other status.
        is_gone = (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            # A worker of another cluster, at an address that was this worker's.
            grpc.StatusCode.UNAUTHENTICATED,
        )
        return error.code() not in is_gone
    return bool(response.worker.ready)  # otherwise its engine is dead, and the actor ends soon
