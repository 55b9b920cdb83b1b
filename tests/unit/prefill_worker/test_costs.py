"""What the cost model of an engine starts from, read off vLLM's configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("vllm")

import torch

from cost_profiles.load import ProfileError, save_profile
from cost_profiles.types import Accelerator, ModelGeometry
from prefill_worker import costs
from tests.profiles import a_profile

LLAMA = ModelGeometry("Llama-3.1-8B", 32, 8, 128, "bfloat16")


def a_config(
    model: str = "/models/llama-3.1-8b",
    geometry: ModelGeometry = LLAMA,
    cache_dtype: str = "auto",
    **text: Any,
) -> SimpleNamespace:
    """The parts of a VllmConfig that are read."""
    text_config = {"num_attention_heads": 32, "intermediate_size": 14336, **text}
    model_config = SimpleNamespace(
        model=model,
        dtype=getattr(torch, geometry.dtype),
        hf_text_config=SimpleNamespace(**text_config),
        get_total_num_hidden_layers=lambda: geometry.num_layers,
        get_total_num_kv_heads=lambda: geometry.num_kv_heads,
        get_head_size=lambda: geometry.head_size,
        get_hidden_size=lambda: 4096,
    )
    return SimpleNamespace(
        model_config=model_config,
        cache_config=SimpleNamespace(cache_dtype=cache_dtype, block_size=16),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=4096),
    )


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    log = mock.Mock()
    monkeypatch.setattr(costs, "_log", log)
    return log


def on_device(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(costs, "current_platform", mock.Mock(get_device_name=lambda: name))


def lines(log: mock.Mock) -> list[str]:
    return [call.args[0] % call.args[1:] for call in log.info.call_args_list]


def test_a_shipped_profile_is_found_by_device_and_geometry(
    monkeypatch: pytest.MonkeyPatch, log: mock.Mock
) -> None:
    on_device(monkeypatch, "NVIDIA H200")
    model = costs.costs_for(a_config())
    assert model.base.profile.accelerator.name == "NVIDIA H200"
    assert model.origin == ("NVIDIA H200 Llama-3.1-8B tp1", "modelled")
    assert lines(log) == ["costs of recomputing and swapping: shipped: modelled on NVIDIA H200"]


def test_an_unknown_device_says_once_that_it_starts_from_a_guess(
    monkeypatch: pytest.MonkeyPatch, log: mock.Mock
) -> None:
    on_device(monkeypatch, "Slide Rule")
    assert costs.costs_for(a_config()).recompute_s(0, 1000) > 0
    [line] = lines(log)
    assert "no profile for the device 'Slide Rule'; modelled from a guess" in line


def test_a_file_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, log: mock.Mock, tmp_path: Path
) -> None:
    on_device(monkeypatch, "Abacus 3000")
    save_profile(a_profile(accelerator=Accelerator("Abacus 3000", ())), tmp_path / "tiny.json")
    with pytest.raises(ProfileError, match=r"tiny\.json: .*num_layers is 2, llama-3.1-8b has 32"):
        costs.costs_for(a_config(), str(tmp_path / "tiny.json"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "Llama-3.1-8B"),
        ("/somewhere/models/smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f249", "Llama-3.1-8B"),
    ],
)
def test_a_model_is_named_wherever_it_was_loaded_from(path: str, name: str) -> None:
    assert costs.model_name(path) == name


@pytest.mark.parametrize(
    ("cache_dtype", "expected"),
    [
        ("auto", "float16"),
        ("bfloat16", "bfloat16"),
        ("fp8", "fp8"),
        ("fp8_e5m2", "fp8"),
        ("nvfp4", "fp8"),
    ],
)
def test_the_type_is_that_of_kv(cache_dtype: str, expected: str) -> None:
    assert costs.kv_dtype(cache_dtype, torch.float16) == expected


def test_a_mixture_of_experts_counts_with_what_a_token_meets() -> None:
    config = a_config(intermediate_size=None, moe_intermediate_size=1024, num_experts_per_tok=8)
    assert costs.shape_of(config).intermediate_size == 8192
    # Some models say it for each layer.
    config = a_config(intermediate_size=[1000, 3000])
    assert costs.shape_of(config).intermediate_size == 2000


def test_cores_are_those_of_the_first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-2,5|6-9")
    assert costs.num_cpu_cores() == 4
