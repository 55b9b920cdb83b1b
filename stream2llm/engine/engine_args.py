"""The arguments of vLLM's engine: those of the configuration, and what a worker sets itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.config import KVTransferConfig, StructuredOutputsConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform

from stream2llm.api.errors import InvalidRequestError
from stream2llm.engine import answer_processors_v2 as v2
from stream2llm.engine.answer_bad_words import AnswerBadWords
from stream2llm.engine.answer_penalty import AnswerPenalty
from stream2llm.engine.arguments import RESERVED
from stream2llm.engine.cache_events import kv_events
from stream2llm.engine.cpu_executor import executor_args
from stream2llm.serving.settings.worker_spec import WorkerSpec


class WorkerEngineArgs(AsyncEngineArgs):
    """vLLM's arguments, and what every engine of ours has beside them.

    Layers with a window keep the KV of all tokens, as the others do: vLLM would free what the
    window has passed, and an update may cut a session anywhere. So there is one block table.

    Logits processors count the answer's tokens in the prompt. vLLM decides which model runner it
    uses while it makes the configuration, and each takes processors of its own kind.
    """

    def create_engine_config(self, *args: Any, **kwargs: Any) -> VllmConfig:
        """Returns vLLM's configuration; raises vLLM's errors, and ValueError for models that we refuse."""
        self.disable_hybrid_kv_cache_manager = True
        config = super().create_engine_config(*args, **kwargs)
        _require_kv_of_all_tokens(config)
        of_v1, of_v2 = [AnswerPenalty, AnswerBadWords], [v2.AnswerPenalty, v2.AnswerBadWords]
        config.model_config.logits_processors = of_v2 if config.use_v2_model_runner else of_v1
        return config


def _require_kv_of_all_tokens(config: VllmConfig) -> None:
    """Raises ValueError for a model whose layers do not all have KV that can be cut anywhere."""
    model = config.model_config
    if model.is_hybrid or model.is_attention_free:
        raise ValueError(
            f"{model.architecture} has state-space layers: their state holds the whole context, and"
            " cannot go back to where an update changed it"
        )
    window = config.cache_config.sliding_window
    if window:
        raise ValueError(
            f"every layer of {model.architecture} has a window of {window} tokens, and vLLM frees"
            " their KV behind it; an engine with disable_sliding_window: true takes contexts of up"
            " to that length"
        )


def nixl_options(spec: WorkerSpec) -> dict[str, Any]:
    """Returns the options of vLLM's NIXL connector that both roles share."""
    return {
        "kv_buffer_device": "cpu" if current_platform.is_cpu() else "cuda",
        "kv_connector_extra_config": {"kv_lease_duration": spec.options.handover.lease_s},
        # A decode worker must never silently recompute KV that was lost.
        "kv_load_failure_policy": "fail",
    }


def engine_args(
    spec: WorkerSpec, kv_transfer: dict[str, Any] | None, fixed_args: dict[str, Any]
) -> WorkerEngineArgs:
    """Returns vLLM's arguments for a worker; raises InvalidRequestError for reserved ones.

    Without `kv_transfer` no KV leaves the engine.
    """
    reserved = (RESERVED.keys() | fixed_args.keys()) & spec.engine_args.keys()
    if reserved:
        names = ", ".join(sorted(reserved))
        raise InvalidRequestError(f"{spec.role}.engine: {names}: set by Stream2LLM itself")
    transfer = kv_transfer and KVTransferConfig(**{**nixl_options(spec), **kv_transfer})
    own_args: dict[str, Any] = {}
    if spec.observability.tracing.is_on:
        own_args["otlp_traces_endpoint"] = spec.observability.tracing.otlp_endpoint
    if current_platform.is_cpu():
        own_args["worker_cls"] = "stream2llm.engine.cpu_worker.QuietCPUWorker"
    own_args |= {**spec.engine_args, **executor_args(spec.engine_args), **fixed_args}
    own_args["structured_outputs_config"] = _grammar_backend(
        spec.role, own_args.get("structured_outputs_config") or {}
    )
    try:
        return WorkerEngineArgs(
            model=spec.model_path,
            kv_transfer_config=transfer,
            kv_events_config=kv_events(),
            enable_log_requests=False,
            **own_args,
        )
    except TypeError as error:
        raise InvalidRequestError(f"{spec.role}.engine: {error}") from error


def _grammar_backend(role: str, options: Mapping[str, Any]) -> StructuredOutputsConfig:
    """Returns vLLM's settings for structured outputs, with one backend for all requests.

    With "auto" vLLM chooses a backend for each request, but its engine has only that of the
    first one (vllm#43920), and prefill and decode may have had different first ones.
    """
    config = StructuredOutputsConfig(**{"backend": "xgrammar", **options})
    if config.backend == "auto":
        raise InvalidRequestError(
            f"{role}.engine.structured_outputs_config.backend is auto; name one backend, the same"
            " for prefill and decode"
        )
    return config
