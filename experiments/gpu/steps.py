"""The time between two steps of an engine, in which the device computes nothing. Needs vLLM.

An engine like a prefill worker's, stepped by hand, eager, with random weights in the shape of
Llama 3.1 8B, or of fewer layers on a small device. A step is schedule, execute, update; the
device's part is what its own events measure.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.gpu.copies import Figures
from stream2llm.serving.system.clock import SystemClock

_CLOCK = SystemClock()
_NUM_STEPS, _WARM_UP_STEPS = 60, 10
_LAYERS, _LAYERS_WHEN_SMALL = 32, 8
# With fewer bytes of device memory there is no room for all layers, KV and activations.
_SMALL_BYTES = 40 * 2**30
STEP_TOKENS = 2048


def model_config(memory_bytes: int) -> dict[str, Any]:
    """Returns the model's config.json for a device with so much memory. Pure."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": _LAYERS if memory_bytes >= _SMALL_BYTES else _LAYERS_WHEN_SMALL,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def write_model(folder: Path, memory_bytes: int) -> Path:
    """Writes a model without weights or tokenizer; returns its directory."""
    config = model_config(memory_bytes)
    model = folder / f"llama-3.1-8b-of-{config['num_hidden_layers']}-layers"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(config))
    return model


def engine_args() -> dict[str, Any]:
    """Returns arguments of both the step engine and the profiled one."""
    return {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": 8192,
        "max_num_batched_tokens": STEP_TOKENS,
        "max_num_seqs": 64,
        "gpu_memory_utilization": 0.7,
    }


def steps(model: Path, **more: Any) -> Figures:
    """Starts the engine with the model runner of the environment; times steps of prefill."""
    from prefill_worker.local_engine import LocalEngine
    from stream2llm.engine.model_runner import RUNNER_VARIABLE

    engine = LocalEngine(model, **{**engine_args(), **more})
    try:
        has_v2 = bool(engine.config.use_v2_model_runner)
        wanted = os.environ[RUNNER_VARIABLE] == "1"
        assert has_v2 == wanted, f"model runner V2: {has_v2}, asked for: {wanted}"
        meter = StepMeter(engine)
        found: Figures = {}
        for name, num_tokens in (("a full step", STEP_TOKENS), ("a step of 64 tokens", 64)):
            found |= {f"{name}: {key}": value for key, value in meter.measure(num_tokens).items()}
        return found
    finally:
        engine.close()


@dataclass(slots=True)
class _Times:
    """Seconds of each step."""

    schedule_s: list[float] = field(default_factory=list)
    execute_s: list[float] = field(default_factory=list)
    update_s: list[float] = field(default_factory=list)
    # The part of the executing in which the device computes.
    device_s: list[float] = field(default_factory=list)


class StepMeter:
    """Times steps of an engine, each of one new session."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._vocab_size = engine.config.model_config.get_vocab_size()
        self._random = random.Random(0)
        self._num_sessions = 0

    def measure(self, num_tokens: int) -> Figures:
        """Returns medians over sealed sessions of so many tokens, each answered in one step."""
        times = _Times()
        for number in range(_WARM_UP_STEPS + _NUM_STEPS):
            if number == _WARM_UP_STEPS:
                times = _Times()
            self._step(num_tokens, times)
        gaps = [
            schedule + execute - device + update
            for schedule, execute, device, update in zip(
                times.schedule_s, times.execute_s, times.device_s, times.update_s, strict=True
            )
        ]
        return {
            "device computes, ms": 1e3 * median(times.device_s),
            "device waits, ms": 1e3 * median(gaps),
            "of that scheduling, ms": 1e3 * median(times.schedule_s),
            "of that updating, ms": 1e3 * median(times.update_s),
        }

    def _step(self, num_tokens: int, times: _Times) -> None:
        self._num_sessions += 1
        tokens = [self._random.randrange(3, self._vocab_size) for _ in range(num_tokens)]
        self._engine.add(f"step-{self._num_sessions}", tokens)
        scheduler = self._engine.scheduler
        step = _noted(times.schedule_s, scheduler.schedule)
        assert step.total_num_scheduled_tokens == num_tokens
        device_s = device_clock()
        result = _noted(times.execute_s, lambda: self._engine.execute(step))
        times.device_s.append(device_s())
        _noted(times.update_s, lambda: scheduler.update_from_output(step, result))


def device_clock() -> Callable[[], float]:
    """Returns what returns the seconds of the device since now; on a CPU those of the wall."""
    if not torch.cuda.is_available():
        began_s = _CLOCK.monotonic_s()
        return lambda: _CLOCK.monotonic_s() - began_s
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()

    def seconds() -> float:
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return seconds


def _noted(into: list[float], work: Callable[[], Any]) -> Any:
    began_s = _CLOCK.monotonic_s()
    result = work()
    into.append(_CLOCK.monotonic_s() - began_s)
    return result
