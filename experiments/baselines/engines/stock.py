"""vLLM as it is, behind a host's socket: AsyncLLM with its own scheduler and defaults."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import Any

from vllm import SamplingParams
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import StreamingInput
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from experiments.baselines.engines.messages import Ask, Failed, Feed, HostSpec, Send, Splice, Tokens
from stream2llm.engine.cpu_executor import executor_args
from stream2llm.engine.stats import StatsRelay
from stream2llm.serving.system.ports import pick_port

HOST = "127.0.0.1"


def common_args(spec: HostSpec) -> dict[str, Any]:
    """What every baseline's engine is started with."""
    return {
        "dtype": "bfloat16",
        "enforce_eager": True,
        "block_size": spec.block_size,
        "max_model_len": spec.max_model_len,
        "max_num_batched_tokens": spec.token_budget,
        "max_num_seqs": spec.max_num_seqs,
        "num_gpu_blocks_override": spec.num_kv_blocks,
        **executor_args({}),
    }


def _pair_args(spec: HostSpec) -> dict[str, Any]:
    """One half of a pair, with vLLM's own connector; the port of its side channel is in the environment.

    On CPUs with our worker (stream2llm/engine/cpu_worker.py): with the stock one each idle engine's
    NIXL thread takes a whole core, and all engines compute on the last core.
    """
    if spec.kv_role is None:
        return {}
    os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] = HOST
    os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(pick_port(HOST, str(os.getpid())))
    transfer = KVTransferConfig(
        kv_connector="NixlConnector",
        kv_role=spec.kv_role,
        kv_buffer_device="cpu",
        # Otherwise decode would quietly compute a prompt whose KV was lost.
        kv_load_failure_policy="fail",
    )
    worker = "stream2llm.engine.cpu_worker.QuietCPUWorker"
    return {"kv_transfer_config": transfer, "worker_cls": worker}


class StockEngine:
    """See `HostedEngine`."""

    def __init__(self, llm: AsyncLLM, counts: Counts, send: Send) -> None:
        self._llm = llm
        self._counts = counts
        self._send = send
        self._feeds: dict[str, asyncio.Queue[Feed]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    @classmethod
    async def start(cls, spec: HostSpec, send: Send) -> StockEngine:
        counts = Counts()
        args = AsyncEngineArgs(
            model=spec.model_path,
            enable_log_requests=False,
            **common_args(spec),
            **_pair_args(spec),
        )
        llm = AsyncLLM.from_engine_args(args, stat_loggers=[counts.as_logger])
        return cls(llm, counts, send)

    def settings(self) -> dict[str, str | float]:
        """What matters of vLLM's configuration."""
        return settings_of(self._llm.vllm_config)

    async def ask(self, message: Ask) -> None:
        """One ordinary request."""
        prompt = tokens_input(message.token_ids)
        params = _params(message.max_tokens, message.transfer)
        await self._run(message.request_id, prompt, params)

    async def feed(self, message: Feed) -> None:
        """A part of a streaming input. Only the tokens of the last part are the answer's."""
        queue = self._feeds.get(message.request_id)
        if queue is not None:
            queue.put_nowait(message)
            return
        queue = self._feeds[message.request_id] = asyncio.Queue()
        queue.put_nowait(message)
        parts = _Parts(queue)
        await self._run(message.request_id, parts.inputs(), _params(1), parts)

    async def _run(
        self, request_id: str, prompt: Any, params: SamplingParams, parts: _Parts | None = None
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running[request_id] = task
        try:
            async for output in self._llm.generate(prompt, params, request_id):
                self._tell(request_id, output, parts)
        except asyncio.CancelledError:
            self._send(Failed(request_id, "aborted"))
        finally:
            self._running.pop(request_id, None)
            self._feeds.pop(request_id, None)

    def _tell(self, request_id: str, output: Any, parts: _Parts | None) -> None:
        count = len(output.outputs[0].token_ids)
        if parts is not None:
            count = parts.num_of_answer(count)
        if count or output.finished:
            transfer = output.kv_transfer_params if output.finished else None
            self._send(Tokens(request_id, count, output.finished, transfer))

    async def splice(self, message: Splice) -> None:
        """Not stock vLLM's."""
        raise NotImplementedError

    async def end(self, request_id: str) -> None:
        """Cancelling the reader of `generate` aborts the request, as a lost connection does."""
        if task := self._running.get(request_id):
            task.cancel()

    async def reset(self) -> None:
        """Aborts of the last run may still be under way."""
        await empty_cache(self._llm)

    async def set_policy(self, policy: str) -> None:
        """Stock vLLM has its own."""
        raise NotImplementedError

    def counters(self) -> dict[str, float]:
        """vLLM's own statistics, summed up."""
        return self._counts.as_dict()

    async def wait_dead(self) -> str:
        """Returns when vLLM's output handler has ended."""
        handler = self._llm.output_handler
        assert handler is not None
        await asyncio.wait({handler})
        return f"vLLM died: {self._llm.dead_error}"

    async def shutdown(self) -> None:
        """Ends the engine's processes."""
        await asyncio.to_thread(self._llm.shutdown)


class _Parts:
    """The parts of one streaming input. Each but the last samples one token, which is discarded."""

    def __init__(self, queue: asyncio.Queue[Feed]) -> None:
        self._queue = queue
        # Tokens of parts that are no answer, still to come; those of the last part are not counted.
        self._num_discarded = 0

    async def inputs(self) -> AsyncGenerator[StreamingInput, None]:
        """For `generate`."""
        last = False
        while not last:
            part = await self._queue.get()
            last = part.last
            self._num_discarded += not last
            params = _params(part.max_tokens if last else 1)
            yield StreamingInput(tokens_input(part.token_ids), params)

    def num_of_answer(self, count: int) -> int:
        """How many of so many new tokens belong to the answer."""
        discarded = min(count, self._num_discarded)
        self._num_discarded -= discarded
        return count - discarded


class Counts:
    """What vLLM reports after each step, summed up."""

    def __init__(self) -> None:
        self._values = dict.fromkeys(
            ("preemptions", "prompt_tokens", "prefix_queries", "prefix_hits", "steps"), 0.0
        )

    def as_dict(self) -> dict[str, float]:
        """Since the start."""
        return dict(self._values)

    def as_logger(self, vllm_config: Any, engine_index: int = 0) -> StatLoggerBase:
        """Something vLLM can report to."""
        return StatsRelay(self.add)

    def add(self, scheduler_stats: Any, iteration_stats: Any) -> None:
        values = self._values
        values["steps"] += 1
        if iteration_stats is not None:
            values["preemptions"] += iteration_stats.num_preempted_reqs
            values["prompt_tokens"] += iteration_stats.num_prompt_tokens
        if scheduler_stats is not None:
            values["prefix_queries"] += scheduler_stats.prefix_cache_stats.queries
            values["prefix_hits"] += scheduler_stats.prefix_cache_stats.hits


async def empty_cache(llm: AsyncLLM) -> None:
    """Waits until no block is held; raises RuntimeError after 45 seconds.

    A hand-over that decode will not read is held to the end of its lease, 30 s by default.
    """
    for _ in range(450):
        if await llm.reset_prefix_cache():
            return
        await asyncio.sleep(0.1)
    raise RuntimeError("blocks are held: the prefix cache cannot be emptied")


def settings_of(config: Any) -> dict[str, str | float]:
    """What an engine turned out to be, for the record."""
    cache, scheduler = config.cache_config, config.scheduler_config
    return {
        "kv_blocks": cache.num_gpu_blocks,
        "block_size": cache.block_size,
        "prefix_caching": str(bool(cache.enable_prefix_caching)),
        "token_budget": scheduler.max_num_batched_tokens,
        "max_num_seqs": scheduler.max_num_seqs,
        "async_scheduling": str(bool(scheduler.async_scheduling)),
        "executor": str(config.parallel_config.distributed_executor_backend),
        "dtype": str(config.model_config.dtype),
    }


def _params(max_tokens: int, transfer: dict[str, Any] | None = None) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        extra_args=None if transfer is None else {"kv_transfer_params": transfer},
        output_kind=RequestOutputKind.DELTA,
    )
