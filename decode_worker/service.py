"""`DecodeService`: continues answers, and releases KV that nobody wants.

From the moment a Decode request has arrived, this worker answers for its
hand-over: it reads the KV, or tells prefill that it will not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import grpc

from decode_worker.engine import begin_decode, decode_steps, parse_handover
from stream2llm.engine_worker import EngineWorker
from stream2llm.errors import InvalidRequestError, UnavailableError, describe
from stream2llm.ids import unique_id
from stream2llm.rpc_status import abort
from stream2llm.sampling import SamplingParameters
from stream2llm.stream_writer import StreamWriter, failures_as_status
from stream2llm.token_step import TokenStep
from stream2llm.v1 import worker_pb2, worker_pb2_grpc
from stream2llm.vllm_engine import OutputStream
from stream2llm.wire import from_proto, token_step_to_proto
from stream2llm.worker_metrics import TransferMetrics

_log = logging.getLogger(__name__)


class DecodeService(worker_pb2_grpc.DecodeServiceServicer):
    """Serves the answers of one engine."""

    def __init__(self, worker: EngineWorker, metrics: TransferMetrics) -> None:
        self._worker = worker
        self._metrics = metrics

    async def Decode(
        self, request: worker_pb2.DecodeRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """Continues one answer."""
        # Tells the router that the hand-over is ours from here on.
        await context.send_initial_metadata(())
        writer = StreamWriter(context)
        async with (
            failures_as_status(context, writer, _log, describe),
            aclosing(self._steps(request)) as steps,
        ):
            async for step in steps:
                await writer.write(worker_pb2.DecodeResponse(step=step))

    async def _steps(
        self, request: worker_pb2.DecodeRequest
    ) -> AsyncGenerator[worker_pb2.TokenStep, None]:
        request_id = unique_id(request.session_id)
        sampling = from_proto(request.sampling)
        engine = self._worker.engine
        async with AsyncExitStack() as stack:
            stream = await self._begin(request_id, request, sampling, stack)
            steps = decode_steps(engine, request_id, stream, sampling.logprobs)
            await stack.enter_async_context(aclosing(steps))
            async for step in self._counting_failures(steps):
                yield token_step_to_proto(step)

    async def _begin(
        self,
        request_id: str,
        request: worker_pb2.DecodeRequest,
        sampling: SamplingParameters,
        stack: AsyncExitStack,
    ) -> OutputStream:
        """Hands the request to the engine; on any failure nobody will read, and prefill hears it."""
        transfer = parse_handover(request.handover.kv_transfer_params_json)
        tokens = list(request.prompt_token_ids)
        try:
            stack.enter_context(self._worker.session())
            return await begin_decode(self._worker.engine, request_id, tokens, sampling, transfer)
        except BaseException:
            await asyncio.shield(self._release(request_id, transfer))
            raise

    async def _counting_failures(self, steps: AsyncIterator[TokenStep]) -> AsyncIterator[TokenStep]:
        try:
            async for step in steps:
                yield step
        except UnavailableError as error:
            if error.reason == "KV_LOST":
                self._metrics.record_failed()
            raise

    async def ReleaseHandover(
        self, request: worker_pb2.ReleaseHandoverRequest, context: grpc.aio.ServicerContext
    ) -> worker_pb2.ReleaseHandoverResponse:
        """Tells prefill that nobody will read this hand-over."""
        try:
            transfer = parse_handover(request.handover.kv_transfer_params_json)
        except InvalidRequestError as error:
            await abort(context, error)
        await self._release(request.session_id, transfer)
        return worker_pb2.ReleaseHandoverResponse()

    async def _release(self, hint: str, transfer: dict[str, Any]) -> None:
        self._metrics.record_released()
        await self._worker.engine.reject_handover(unique_id(hint), transfer)
