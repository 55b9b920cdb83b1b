"""Our prefill worker's engine behind a host's socket: all of it but gRPC, router and Ray.

Engine, scheduler, KV connectors and control channel are started as a prefill
worker starts them. Nothing is handed over: the first token is the whole answer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict

from experiments.baselines.engines.messages import Ask, Failed, Feed, HostSpec, Send, Splice, Tokens
from experiments.baselines.engines.stock import HOST, common_args, empty_cache, settings_of
from prefill_worker.control import ControlChannel, open_control_channel
from prefill_worker.engine import PrefillSession, prefill_outputs, start_prefill_engine
from stream2llm.api.sampling import SamplingParameters
from stream2llm.engine.stats import EngineStats
from stream2llm.engine.vllm_engine import Engine
from stream2llm.serving.sessions.ids import unique_id
from stream2llm.serving.settings.worker_options import PrefillOptions, WorkerOptions
from stream2llm.serving.settings.worker_spec import WorkerSpec
from stream2llm.serving.system.ports import pick_port
from stream2llm.workload.report.summary import PREEMPTIONS

OFFLOAD_POOL_GIB = 1.0
_SAMPLING = SamplingParameters(max_tokens=1, temperature=0.0, ignore_eos=True)


def worker_spec(spec: HostSpec) -> WorkerSpec:
    """What a prefill worker of a cluster would get."""
    return WorkerSpec(
        worker_id="prefill-0",
        role="prefill",
        model_path=spec.model_path,
        host=HOST,
        metrics_port=0,
        engine_args=common_args(spec),
        options=WorkerOptions(
            prefill=PrefillOptions(
                offload_pool_gib=OFFLOAD_POOL_GIB,
                preemption=spec.preemption,
            )
        ),
    )


class OurEngine:
    """See `HostedEngine`."""

    def __init__(
        self, engine: Engine, control: ControlChannel, stack: AsyncExitStack, send: Send
    ) -> None:
        self._engine = engine
        self._control = control
        self._stack = stack
        self._send = send
        self._sessions: dict[str, _Session] = {}

    @classmethod
    async def start(cls, spec: HostSpec, send: Send) -> OurEngine:
        """Starts vLLM with our scheduler, and the channel to it."""
        os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] = HOST
        os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(pick_port(HOST, str(os.getpid())))
        engine = await start_prefill_engine(worker_spec(spec), EngineStats())
        stack = AsyncExitStack()
        channel = open_control_channel(engine, lambda report: None)
        return cls(engine, await stack.enter_async_context(channel), stack, send)

    def settings(self) -> dict[str, str | float]:
        """What matters of vLLM's configuration."""
        return settings_of(self._engine._llm.vllm_config)

    async def splice(self, message: Splice) -> None:
        """A context event; the one that opens the session also reads its answer."""
        request_id = message.request_id
        session = self._sessions.get(request_id)
        if session is None:
            session = self._sessions[request_id] = _Session(self._engine)
        if await session.splice(message):
            async for count in session.answer():
                self._send(Tokens(request_id, count, True))
            self._sessions.pop(request_id, None)

    async def end(self, request_id: str) -> None:
        """Frees its blocks."""
        if (session := self._sessions.pop(request_id, None)) is not None:
            await session.cancel()
            self._send(Failed(request_id, "cancelled"))

    async def reset(self) -> None:
        """Sessions that were cancelled may still be about to end."""
        await empty_cache(self._engine._llm)

    async def set_policy(self, policy: str) -> None:
        """Through the control channel, as a live cluster is switched."""
        await self._control.set_policy(policy)

    def counters(self) -> dict[str, float]:
        """What the scheduler last reported, preemptions under the names of `stream2llm.workload.report`."""
        values = asdict(self._control.newest_report.counters)
        for action in ("recompute", "swap"):
            values[f"{PREEMPTIONS}_{action}"] = values.pop(f"{action}_preemptions")
        return {name: float(value) for name, value in values.items()}

    async def ask(self, message: Ask) -> None:
        """A whole prompt: opened and sealed at once."""
        await self.splice(Splice(message.request_id, 0, message.token_ids, True))

    async def feed(self, message: Feed) -> None:
        """That is stock vLLM's."""
        raise NotImplementedError

    async def wait_dead(self) -> str:
        """Returns when the engine has died."""
        return f"our engine died: {await self._engine.wait_dead()}"

    async def shutdown(self) -> None:
        """The channel first, then the engine's processes."""
        await self._stack.aclose()
        await asyncio.to_thread(self._engine.shutdown)


class _Session:
    """A PrefillSession whose events keep their order."""

    def __init__(self, engine: Engine) -> None:
        self._prefill = PrefillSession(engine, unique_id("baseline"), _SAMPLING)
        self._revision = 0
        self._in_order = asyncio.Lock()
        self._read = False

    async def splice(self, message: Splice) -> bool:
        """Sends the event; whether the caller is the one to read the answer."""
        async with self._in_order:
            self._revision += 1
            await self._prefill.splice(
                self._revision, message.keep_tokens, message.token_ids, seal=message.seal
            )
            begins = self._prefill.outputs is not None and not self._read
            self._read = self._read or begins
            return begins

    async def answer(self) -> AsyncIterator[int]:
        """The number of tokens of each output that has any."""
        assert self._prefill.outputs is not None
        async for output in prefill_outputs(self._prefill.outputs):
            if output.sampled is not None:
                yield len(output.sampled.token_ids)

    async def cancel(self) -> None:
        """Frees the session's blocks."""
        await self._prefill.cancel()
