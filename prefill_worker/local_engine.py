"""A real vLLM engine with our scheduler in this very process, stepped by hand.

EngineCore, model runner and kernels are those of a prefill worker; what is
missing is the process around them, the hand-over and the front end. So a test
can ask between any two steps what the scheduler holds, and a benchmark sees
each step's time. One a process: vLLM keeps global state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from vllm import SamplingParams, envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import RequestStatus

from prefill_worker.engine import FIXED_ARGS
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.session_state import WIRE_KEY, ContextEvent

ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # This process is not ours alone.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def core_request(
    request_id: str, token_ids: Sequence[int], params: SamplingParams
) -> EngineCoreRequest:
    """A request as a front end sends it to EngineCore."""
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=list(token_ids),
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id=request_id,
    )


class LocalEngine:
    """One engine; see the module's text."""

    def __init__(
        self, model: Path, *, options: Mapping[str, Any] | None = None, **engine_args: Any
    ) -> None:
        args = {
            "enforce_eager": True,
            "worker_cls": "stream2llm.cpu_worker.QuietCPUWorker",
            "distributed_executor_backend": "uni",
            **FIXED_ARGS,
            "additional_config": {WIRE_KEY: dict(options or {})},
            **engine_args,
        }
        # Others in this process have an environment of their own.
        with mock.patch.dict(os.environ, ENVIRONMENT):
            config = AsyncEngineArgs(model=str(model), **args).create_engine_config()
            self._core = EngineCore(config, UniProcExecutor, log_stats=True)
        envs.disable_envs_cache()

    @property
    def scheduler(self) -> PrefillScheduler:
        """The scheduler, between two steps."""
        scheduler: PrefillScheduler = self._core.scheduler
        return scheduler

    def add(
        self,
        request_id: str,
        token_ids: Sequence[int],
        event: ContextEvent | None = None,
        **sampling: Any,
    ) -> None:
        """A session's event; without one, an ordinary request."""
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            extra_args={WIRE_KEY: event.to_wire()} if event else None,
            **sampling,
        )
        request = core_request(request_id, token_ids, params)
        self._core.add_request(*self._core.preprocess_add_request(request))

    def cancel(self, request_id: str) -> None:
        """Ends a session from outside."""
        self.scheduler.finish_requests([request_id], RequestStatus.FINISHED_ABORTED)

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Computes a step that the scheduler has built."""
        executor = self._core.model_executor
        output = executor.execute_model(step, non_block=True).result()
        return output if output is not None else executor.sample_tokens(None)

    def step(self, before_update: Callable[[], None] | None = None) -> list[EngineCoreOutput]:
        """One step, if there is anything to do; the outputs of it."""
        if not self.scheduler.has_requests():
            return []
        step = self.scheduler.schedule()
        result = self.execute(step)
        if before_update is not None:
            before_update()
        by_client = self.scheduler.update_from_output(step, result)
        return [output for outputs in by_client.values() for output in outputs.outputs]

    def close(self) -> None:
        """Ends it."""
        self._core.shutdown()
