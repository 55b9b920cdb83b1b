"""The sections of the configuration for prefill, decode and mixed workers."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from prefill_worker.policy_loading import require_policy
from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.settings.frozen_model import FrozenModel
from stream2llm.serving.settings.placement import Placement
from stream2llm.serving.settings.worker_options import PrefillOptions
from stream2llm.serving.settings.worker_spec import DEFAULT_HUNG_AFTER_S


class WorkerConfig(FrozenModel):
    """The workers of one role."""

    replicas: int = Field(default=1, ge=1)
    """Number of workers of this role."""
    host: str = "127.0.0.1"
    """Address that workers listen on and that other nodes reach them at. "auto": that of the node
    that Ray places the worker on."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs that Ray reserves for each worker, all on one node. 0: a CPU engine."""
    num_cpus: float = Field(default=1, ge=0)
    """CPUs that Ray reserves for each worker. Reservation only; `cpu_bind` chooses the cores."""
    placement: Placement = Placement()
    """The nodes that Ray may place workers of this role on."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Prometheus port of the first worker; the others take the following ports. 0: any free."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """vLLM engine arguments, checked by vLLM (`AsyncEngineArgs`)."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the worker's process, for instance `VLLM_CPU_KVCACHE_SPACE`."""
    cpu_bind: str = "auto"
    """CPU engines only: cores of each replica in the syntax of vLLM's
    `VLLM_CPU_OMP_THREADS_BIND`, replicas separated by ";" (`0-1;2-3`). "auto": one core each, in
    turn."""
    start_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds that one start of a worker may take."""
    hung_after_s: float = Field(default=DEFAULT_HUNG_AFTER_S, ge=10)
    """Seconds without a sign of life after which an engine counts as hung: it is killed, its
    sessions go on at other workers, and the worker is replaced. The least of it: an engine whose
    steps are long has more (docs/failure-detection.md)."""


class PrefillConfig(PrefillOptions, WorkerConfig):
    """The prefill workers."""

    @field_validator("policy")
    @classmethod
    def _is_named_or_a_path(cls, name: str) -> str:
        """Paths are followed in preflight: reading a file runs no code."""
        try:
            return name if ":" in name else require_policy(name)
        except InvalidRequestError as error:
            raise ValueError(error.message) from error

    @property
    def options(self) -> PrefillOptions:
        """The settings of their scheduler."""
        return PrefillOptions.model_validate(
            {name: getattr(self, name) for name in PrefillOptions.model_fields}
        )


class MixedConfig(PrefillConfig):
    """The mixed workers, which go on decoding what they have prefilled."""

    # Off: what a step without prefill takes depends on the machine, and a target near that
    # leaves prefill a block a step, which costs TTFT.
    inter_token_target_ms: int | None = Field(default=None, ge=1)
    """Milliseconds that a step with answers under way should take at most: the time between two of
    their tokens. Prefill in such a step is cut to what is expected to fit, but goes on by a block at
    least. Unset: it may fill the step (`engine.max_num_batched_tokens`)."""


class DecodeConfig(WorkerConfig):
    """The decode workers."""
