"""A simulated client: one session by its plan, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from stream2llm.api.final_status import FinalStatus
from stream2llm.api.rpc_status import from_rpc_error
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.api.v1.inference_pb2_grpc import StreamingInferenceServiceStub
from tests.simulation.channel import Channel
from tests.simulation.routers import TENANT_HEADER
from tests.simulation.sessions import Plan, messages


@dataclass
class Outcome:
    """What a client saw of its session."""

    plan: Plan
    token_ids: list[int] = field(default_factory=list)
    # Every message `Finished`; a session has one, or an error.
    finished: list[Any] = field(default_factory=list)
    restarts: int = 0
    is_accepted: bool = False
    error: grpc.aio.AioRpcError | None = None
    # The client has left, on its own or because its process was killed.
    has_left: bool = False
    ended_at_s: float | None = None

    @property
    def reason(self) -> str:
        """The error's reason; empty for one that is gRPC's own, or none."""
        ours = None if self.error is None else from_rpc_error(self.error)
        return "" if ours is None else ours.reason

    def __str__(self) -> str:
        if self.finished:
            how = "finished"
        elif self.has_left:
            how = "left"
        else:
            how = f"failed {self.reason} {self.error!r}"
        return f"{self.plan.name} {how} restarts={self.restarts} tokens={self.token_ids}"


class Client:
    """Runs one session."""

    def __init__(self, plan: Plan, connect: Callable[[], Channel]) -> None:
        self.outcome = Outcome(plan)
        self._plan = plan
        self._connect = connect

    def leave(self) -> None:
        """The client's process dies."""
        if self.outcome.ended_at_s is None:
            self.outcome.has_left = True

    async def run(self) -> None:
        """Returns when the session has ended."""
        plan = self._plan
        await asyncio.sleep(plan.begins_at_s)
        call = self._begin()
        try:
            async with asyncio.timeout(plan.leaves_after_s) as limit:
                await self._talk(call)
        except TimeoutError:
            assert limit.expired()
            self.outcome.has_left = True
        finally:
            call.cancel()
            self.outcome.ended_at_s = asyncio.get_running_loop().time()

    def _begin(self) -> Any:
        plan = self._plan
        stub: Any = StreamingInferenceServiceStub(self._connect())
        metadata = ((TENANT_HEADER, plan.tenant),)
        if not plan.one_shot:
            return stub.StreamGenerate(metadata=metadata)
        prompt = pb.TokenIds(ids=plan.prompt)
        request = pb.GenerateRequest(session_id=plan.name, token_ids=prompt, sampling=plan.sampling)
        return stub.Generate(request, metadata=metadata)

    async def _talk(self, call: Any) -> None:
        writing = asyncio.create_task(self._write(call))
        final = FinalStatus(call)
        try:
            await self._read(call)
        except grpc.aio.AioRpcError as error:
            if not self.outcome.finished:
                self.outcome.error = await final.of(error)
        finally:
            writing.cancel()
            await asyncio.wait({writing})

    async def _write(self, call: Any) -> None:
        if self._plan.one_shot:
            return
        # The reader gets the reason.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for pause_s, message in messages(self._plan):
                await asyncio.sleep(pause_s)
                await call.write(message)
            await call.done_writing()

    async def _read(self, call: Any) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            await asyncio.sleep(self._plan.read_s)
            self._take(message)

    def _take(self, message: Any) -> None:
        match message.WhichOneof("event"):
            case "delta":
                self.outcome.token_ids += message.delta.token_ids
            case "accepted":
                self.outcome.is_accepted = True
            case "progress":
                self.outcome.restarts = message.progress.restarts
            case "finished":
                self.outcome.finished.append(message.finished)
