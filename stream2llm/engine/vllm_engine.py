"""A vLLM engine as our workers use it: token ids in, single outputs out.

Wraps AsyncLLM, which runs EngineCore in a separate process. It differs from
`AsyncLLM.generate` in two points: the outputs of a request reach its reader one by one
(`output_stream.py`), and the caller can build requests, which is how context events travel.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.trace_context import TraceContext
from stream2llm.engine.cache_events import hash_root
from stream2llm.engine.engine_args import engine_args
from stream2llm.engine.output_stream import OutputStream, engine_error
from stream2llm.engine.sign_of_life import SignOfLife
from stream2llm.engine.sockets import socket_environment
from stream2llm.engine.stats import EngineStats
from stream2llm.engine.step_limit import LIMIT_VARIABLE, StepLimit
from stream2llm.serving.actor.loss import Cause, Loss
from stream2llm.serving.observability import logs
from stream2llm.serving.observability.tracing import service_name
from stream2llm.serving.settings.worker_spec import Role, WorkerSpec
from stream2llm.serving.system.clock import Clock, SystemClock

_log = logging.getLogger(__name__)


def tracing_environment(role: Role) -> dict[str, str]:
    """Variables that the SDK in the engine's processes reads; ours is configured otherwise."""
    return {
        # Requests without a context (the control channel, prefetches) begin no trace.
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_SERVICE_NAME": service_name(role),
        # As often as our own spans are sent.
        "OTEL_BSP_SCHEDULE_DELAY": "1000",
    }


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Properties of a running engine."""

    max_model_len: int
    num_kv_blocks: int
    block_size: int
    vocab_size: int


class Engine:
    """One running vLLM engine."""

    def __init__(
        self,
        llm: AsyncLLM,
        stats: EngineStats,
        clock: Clock,
        step_limit: StepLimit,
        hung_after_s: float,
    ) -> None:
        self._llm = llm
        self.stats = stats
        self._clock = clock
        # Constant, because an engine without one of its processes is dead.
        self._processes = _engine_processes()
        self.pids = (os.getpid(), *(process.pid for process in self._processes))
        self.sign_of_life = SignOfLife(llm.is_paused, step_limit.read, hung_after_s, clock)
        # Why it hung, once it has.
        self._hung: asyncio.Future[Loss] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(
        cls,
        spec: WorkerSpec,
        *,
        kv_transfer: dict[str, Any] | None,
        fixed_args: dict[str, Any],
        stats: EngineStats,
        clock: Clock | None = None,
    ) -> Engine:
        """Starts the engine's processes and loads the model; takes 15-50 s on two cores.

        `kv_transfer` names the KV connector and its role, and takes precedence over
        `nixl_options`; `fixed_args` are engine arguments that a user may not set.

        Raises InvalidRequestError for reserved or unknown engine arguments, and
        vLLM's own errors for others.
        """
        _set_environment(socket_environment(spec.host))
        if spec.observability.tracing.is_on:
            _set_environment(tracing_environment(spec.role))
        args = engine_args(spec, kv_transfer, fixed_args)
        step_limit, path = StepLimit.create()
        os.environ[LIMIT_VARIABLE] = path  # of this engine, should another have run here
        logs.guard("vllm", spec.observability.logs)  # importing vLLM has added handlers
        llm = await asyncio.to_thread(_build_config_and_llm, args, stats)
        logs.guard("vllm", spec.observability.logs)  # and its configuration others
        # The output handler must run in this loop; vLLM is built in a thread, where it
        # could not start it.
        llm._run_output_handler()
        return cls(llm, stats, clock or SystemClock(), step_limit, spec.hung_after_s)

    @property
    def info(self) -> EngineInfo:
        """Sizes of the model and of its KV memory."""
        config = self._llm.vllm_config
        model = config.model_config
        return EngineInfo(
            max_model_len=model.max_model_len,
            num_kv_blocks=config.cache_config.num_gpu_blocks - 1,  # one is vLLM's null block
            block_size=config.cache_config.block_size,
            vocab_size=model.get_vocab_size(),
        )

    @property
    def hash_root(self) -> bytes:
        """What hashes of blocks are chained to; empty where the engine does not tell its blocks."""
        return hash_root(self._llm.vllm_config)

    @property
    def is_dead(self) -> bool:
        """Whether the engine has died, or hung and was killed."""
        return bool(self._llm.errored) or self._hung.done()

    async def wait_dead(self) -> Loss:
        """Returns why once one of the engine's processes has died, or the engine has hung."""
        handler = self._llm.output_handler
        assert handler is not None
        # The output handler ends when EngineCore, or a worker of it, is gone.
        await asyncio.wait({handler, self._hung}, return_when=asyncio.FIRST_COMPLETED)
        if self._hung.done():
            return self._hung.result()
        return Loss(Cause.DIED, str(self._llm.dead_error))

    async def kill_when_hung(self) -> None:
        """Kills the engine's processes once it hangs; returns at once when it has died.

        What follows is a death: its streams end, and who waits for it gets the reason. A
        process that was only stopped cannot wake up any more and write into another session's KV.
        """
        try:
            why = await self.sign_of_life.until_hung()
        except EngineDeadError:
            return
        if not self.is_dead:
            _log.error("engine_hung reason=%s pids=%s", why.reason, self.pids[1:])
            self._hung.set_result(why)
            # At once: a process that is stuck in a driver may not end.
            self._llm.output_processor.propagate_error(EngineDeadError())
            for process in self._processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    async def build_request(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        cache_salt: str = "",
        *,
        trace: TraceContext | None = None,
    ) -> EngineCoreRequest:
        """Builds a request; raises InvalidRequestError for one that vLLM refuses.

        Its KV is found only by requests with the same `cache_salt`. vLLM's own span of the
        request is a child of `trace`.
        """
        if self.is_dead:
            raise engine_error(self._llm.dead_error)
        tasks = await self._llm.get_supported_tasks()
        process = partial(
            self._llm.input_processor.process_inputs,
            request_id,
            tokens_input(prompt_token_ids, cache_salt=cache_salt or None),
            params,
            supported_tasks=tasks,
            arrival_time=self._clock.wall_s(),
            trace_headers=None if trace is None else dict(trace.metadata()),
        )
        try:
            if params.structured_outputs is None:
                request = process()
            else:  # vLLM parses the grammar, for up to seconds
                request = await asyncio.to_thread(process)
        except (VLLMClientError, ValueError, OverflowError) as error:
            raise InvalidRequestError(f"the engine refuses the request: {error}") from error
        request.external_req_id = request_id
        return request

    async def submit(self, request: EngineCoreRequest) -> OutputStream:
        """Starts a request; returns the stream of its outputs."""
        stream = OutputStream()
        self._llm.output_processor.add_request(request, None, None, 0, stream)
        try:
            await self.send(request)
        except BaseException:
            # Cancelled half-way: the engine may or may not have it.
            await asyncio.shield(self.abort(request.request_id))
            raise
        return stream

    async def send(self, request: EngineCoreRequest) -> None:
        """Sends a request to the engine without registering a reader: a context event."""
        try:
            await self._llm.engine_core.add_request_async(request)
        except EngineDeadError as error:
            raise engine_error(error) from error

    async def abort(self, request_id: str) -> None:
        """Ends a request and frees its blocks; ignored if it has ended."""
        if not self.is_dead:
            await self._llm.abort(request_id, internal=True)

    async def end(self, request_id: str) -> None:
        """Like `abort`, but for a finished request also ends the lease on its blocks."""
        await self.abort(request_id)
        # AsyncLLM does not pass on aborts of finished requests.
        await self._llm.engine_core.abort_requests_async([request_id])

    async def reject_handover(self, request_id: str, kv_transfer_params: dict[str, Any]) -> None:
        """Makes the connector notify the prefill engine that its blocks will not be read."""
        try:
            await self._llm.notify_kv_transfer_request_rejected(request_id, kv_transfer_params)
        except EngineDeadError as error:
            raise engine_error(error) from error

    def shutdown(self) -> None:
        """Ends the engine's processes. Blocks for up to some seconds."""
        self._llm.shutdown()


def _set_environment(variables: Mapping[str, str]) -> None:
    """Sets variables that the engine's processes read when they start, unless set already."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _engine_processes() -> tuple[psutil.Process, ...]:
    """Returns EngineCore and its workers."""
    children = psutil.Process().children(recursive=True)
    return tuple(each for each in children if "resource_tracker" not in "".join(each.cmdline()))


def _build_config_and_llm(args: AsyncEngineArgs, stats: EngineStats) -> AsyncLLM:
    def logger(vllm_config: Any, engine_index: int = 0) -> StatLoggerBase:
        return stats.as_vllm_logger()

    return AsyncLLM.from_engine_args(args, stat_loggers=[logger])
