"""A real vLLM engine with our scheduler in this process, stepped by hand.

EngineCore, model runner and kernels are those of a prefill worker; process,
hand-over and front end are missing. So a test can inspect the scheduler between any
two steps, and a benchmark can time each step. One per process: vLLM keeps global state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from vllm import SamplingParams, envs
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import RequestStatus

from prefill_worker.engine import FIXED_ARGS
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.session_state import WIRE_KEY, ContextEvent
from stream2llm.engine.cpu_executor import executor_args
from stream2llm.engine.engine_args import WorkerEngineArgs
from stream2llm.engine.model_runner import runner_environment
from stream2llm.engine.sockets import socket_environment
from stream2llm.serving.settings.worker_options import WorkerOptions

ENVIRONMENT = {
    **runner_environment(),
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Other devices ignore VLLM_CPU_*.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # This process also has other work.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    **socket_environment("127.0.0.1"),
}

_DEFAULTS = WorkerOptions()


def core_request(
    request_id: str, token_ids: Sequence[int], params: SamplingParams, cache_salt: str = ""
) -> EngineCoreRequest:
    """Builds a request in the form in which a front end sends it to EngineCore."""
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=list(token_ids),
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=cache_salt or None,
        data_parallel_rank=None,
        external_req_id=request_id,
    )


class LocalEngine:
    """One engine; see the module docstring."""

    def __init__(
        self,
        model: Path,
        *,
        options: WorkerOptions = _DEFAULTS,
        environment: Mapping[str, str] | None = None,
        in_process: bool = True,
        **engine_args: Any,
    ) -> None:
        """Loads the model and builds everything; takes 15 to 60 s.

        `options` set our scheduler. `environment` replaces values of ENVIRONMENT
        while the engine starts. With `in_process` the model runs in this process too;
        otherwise as in a prefill worker: on a CPU bound to its cores, with tensor
        parallelism in separate processes. Raises vLLM's errors.
        """
        args = {
            "enforce_eager": True,
            **_platform_args(engine_args, in_process=in_process),
            **FIXED_ARGS,
            "additional_config": options.to_additional_config(),
            **engine_args,
        }
        # The environment of the rest of this process must not change.
        with mock.patch.dict(os.environ, {**ENVIRONMENT, **(environment or {})}):
            envs.disable_envs_cache()
            config = WorkerEngineArgs(model=str(model), **args).create_engine_config()
            executor = UniProcExecutor if in_process else Executor.get_class(config)
            self._core = EngineCore(config, executor, log_stats=True)
        envs.disable_envs_cache()

    @property
    def config(self) -> VllmConfig:
        """vLLM's configuration, with what it determined at start-up."""
        return self._core.vllm_config

    @property
    def scheduler(self) -> PrefillScheduler:
        """The scheduler; use it between two steps."""
        scheduler: PrefillScheduler = self._core.scheduler
        return scheduler

    def add(
        self,
        request_id: str,
        token_ids: Sequence[int],
        event: ContextEvent | None = None,
        **sampling: Any,
    ) -> None:
        """Adds a session's event; without `event`, an ordinary request."""
        params = SamplingParams(
            **{
                "max_tokens": 1,
                "temperature": 0.0,
                "extra_args": {WIRE_KEY: event.to_wire()} if event else None,
                **sampling,
            }
        )
        request = core_request(request_id, token_ids, params)
        self._core.add_request(*self._core.preprocess_add_request(request))

    def cancel(self, request_id: str) -> None:
        """Cancels a session."""
        self.scheduler.finish_requests([request_id], RequestStatus.FINISHED_ABORTED)

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Computes a step that the scheduler has built."""
        executor = self._core.model_executor
        output = executor.execute_model(step, non_block=True).result()
        return output if output is not None else executor.sample_tokens(None)

    def step(self, before_update: Callable[[], None] | None = None) -> list[EngineCoreOutput]:
        """Runs one step, if there is anything to do; returns its outputs."""
        if not self.scheduler.has_requests():
            return []
        step = self.scheduler.schedule()
        result = self.execute(step)
        if before_update is not None:
            before_update()
        by_client = self.scheduler.update_from_output(step, result)
        return [output for outputs in by_client.values() for output in outputs.outputs]

    def close(self) -> None:
        """Shuts the engine down."""
        self._core.shutdown()


def _platform_args(engine_args: Mapping[str, Any], *, in_process: bool) -> dict[str, Any]:
    args = {"distributed_executor_backend": "uni"} if in_process else executor_args(engine_args)
    if current_platform.is_cpu():
        args["worker_cls"] = "stream2llm.engine.cpu_worker.QuietCPUWorker"
    return args
