"""The type that a CPU computes in: which processors have bfloat16, and what others get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.worker_config import WorkerConfig

# Any of them computes in bfloat16 directly: x86 with AVX-512, with AMX, ARM.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
_KV_SPACE = "VLLM_CPU_KVCACHE_SPACE"


def cpu_flags(text: str) -> frozenset[str]:
    """Returns the flags in /proc/cpuinfo, which ARM calls features; of the first processor."""
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return frozenset()


def flags_here() -> frozenset[str] | None:
    """Returns this machine's flags; None where the system has no /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    return cpu_flags(path.read_text(encoding="utf-8")) if path.is_file() else None


def suited(config: ClusterConfig, flags: frozenset[str] | None) -> ClusterConfig:
    """Returns the configuration with float32 for CPU engines in bfloat16 without instructions.

    KV memory is doubled with it, so that it holds as many tokens. Where the flags are not
    known, nothing is changed.
    """
    if flags is None or flags & BF16_FLAGS:
        return config
    sections: dict[str, WorkerConfig]
    sections = {role: _in_float32(part) for role, part in config.worker_sections}
    return config.model_copy(update=sections)


def _in_float32(part: WorkerConfig) -> WorkerConfig:
    if part.num_gpus or part.engine.get("dtype") != "bfloat16":
        return part
    update: dict[str, Any] = {"engine": {**part.engine, "dtype": "float32"}}
    if space := part.env.get(_KV_SPACE):
        update["env"] = {**part.env, _KV_SPACE: f"{2 * float(space):g}"}
    return part.model_copy(update=update)
