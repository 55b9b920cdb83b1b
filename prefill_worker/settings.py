"""Settings of vLLM under which streaming prefill would break, refused at start-up."""

from __future__ import annotations

from vllm.config import CompilationMode, VllmConfig


def require_settings(config: VllmConfig) -> None:
    """Raises ValueError naming the setting and what it has to be."""
    scheduler = config.scheduler_config
    if scheduler.async_scheduling:
        raise ValueError("a prefill worker needs async_scheduling=False")
    if scheduler.scheduler_reserve_full_isl:
        raise ValueError("a prefill worker needs scheduler_reserve_full_isl=False")
    if scheduler.watermark:
        raise ValueError("a prefill worker needs watermark=0: the plan counts every block")
    if scheduler.long_prefill_token_threshold:
        raise ValueError(
            "a prefill worker needs long_prefill_token_threshold=0: the plan shares out the tokens"
        )
    for name in ("speculative_config", "lora_config"):
        # Either makes the base class leave out, or add to, what was planned.
        if getattr(config, name) is not None:
            raise ValueError(f"a prefill worker takes no {name}")
    if config.max_concurrent_batches > 1:
        # A step must have ended before the next one may evict what it computes.
        raise ValueError("a prefill worker needs pipeline_parallel_size=1")
    _require_bounded_steps(config)


def _require_bounded_steps(config: VllmConfig) -> None:
    """No step may have a shape that the engine did not compile when it started.

    A session that grew past the last compile range cost its neighbours 54 s a
    step (vllm#52471). Steps stay below max_num_batched_tokens because prompts
    are chunked, and what is compiled must reach as far.
    """
    scheduler = config.scheduler_config
    if not scheduler.enable_chunked_prefill:
        raise ValueError("a prefill worker needs enable_chunked_prefill=True")
    num_tokens = scheduler.max_num_scheduled_tokens or scheduler.max_num_batched_tokens
    if num_tokens > scheduler.max_num_batched_tokens:
        raise ValueError(
            f"max_num_scheduled_tokens={num_tokens} is more than"
            f" max_num_batched_tokens={scheduler.max_num_batched_tokens}"
        )
    if config.compilation_config.mode == CompilationMode.NONE:
        return
    endpoints = config.compilation_config.compile_ranges_endpoints or [0]
    if max(endpoints) < scheduler.max_num_batched_tokens:
        raise ValueError(
            f"compile_ranges_endpoints end at {max(endpoints)}, a step may have"
            f" max_num_batched_tokens={scheduler.max_num_batched_tokens} tokens"
        )
