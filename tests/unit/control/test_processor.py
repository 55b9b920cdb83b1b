"""The default configuration on processors with and without bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream2llm.cluster import config_file
from stream2llm.cluster.config_file import chosen_config, default_config, load_config, parse_config
from stream2llm.cluster.processor import cpu_flags, suited

pytestmark = pytest.mark.unit

AVX2 = frozenset({"avx2", "fma"})


def test_flags_of_intel_and_arm() -> None:
    assert "amx_bf16" in cpu_flags("processor : 0\nflags\t\t: fpu amx_bf16\n\nflags : other\n")
    assert cpu_flags("Features\t: fp bf16\n") == {"fp", "bf16"}
    assert cpu_flags("") == frozenset()


def test_without_instructions_cpu_engines_compute_in_float32_with_as_many_tokens_of_kv() -> None:
    config = load_config(default_config())
    for _, part in suited(config, AVX2).worker_sections:
        assert part.engine["dtype"] == "float32"
        assert part.env["VLLM_CPU_KVCACHE_SPACE"] == "2"
        assert part.engine["block_size"] == 32
    for flags in (AVX2 | {"avx512_bf16"}, None):
        assert suited(config, flags) == config


def test_engines_of_another_type_and_of_gpus_stay_as_they_are() -> None:
    tree = {
        "model": "m",
        "prefill": {"engine": {"dtype": "bfloat16"}, "num_gpus": 1},
        "decode": {"engine": {"dtype": "auto"}},
    }
    config = parse_config(tree, source="test")
    assert suited(config, AVX2) == config


def test_a_file_that_is_named_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(config_file, "flags_here", lambda: AVX2)
    path = tmp_path / "mine.yaml"
    path.write_bytes(default_config().read_bytes())
    assert chosen_config(path).prefill.engine["dtype"] == "bfloat16"
    chosen = chosen_config(None, "10.0.0.1:6379")
    assert (chosen.prefill.engine["dtype"], chosen.ray.address) == ("float32", "10.0.0.1:6379")
