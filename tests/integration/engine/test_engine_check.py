"""What `up --check` hears from vLLM itself, without an engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.sample import logits_processor as v1
from vllm.v1.worker.gpu.sample import logits_processor as v2

from decode_worker.engine import _settings
from decode_worker.engine import check_arguments as check_decode
from prefill_worker.engine import check_arguments as check_prefill
from stream2llm.cluster.config_file import parse_config
from stream2llm.cluster.engine_check import Verdict, _in_words, check_engines
from stream2llm.cluster.layout import Factories, common_environment, lay_out
from stream2llm.engine.engine_args import engine_args
from stream2llm.engine.model_runner import runner_environment
from stream2llm.serving.settings.launch import Launch
from tests.cluster_pool import model_path
from tests.model_families import FAMILIES, write_config

GOOD = {"dtype": "float32", "enforce_eager": True, "block_size": 32, "max_model_len": 2048}


@pytest.fixture(scope="module")
def model() -> Path:
    return model_path("random-llama-sensitive")


@pytest.fixture(autouse=True)
def _as_an_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    for name, value in runner_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def launches(model: Path, **engine: Any) -> dict[str, Launch]:
    part = {"engine": {**GOOD, **engine}, "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    config = parse_config({"model": str(model), "prefill": part, "decode": part}, source="test")
    laid = lay_out(config, model, common_environment(), Factories())
    return {launch.role: launch for launch in laid}


def test_what_runs_passes(model: Path) -> None:
    check_prefill(launches(model)["prefill"].spec)
    check_decode(launches(model)["decode"].spec)
    other = launches(model, structured_outputs_config={"backend": "guidance"})
    check_decode(other["decode"].spec)


def test_logits_processors_are_those_of_the_model_runner(model: Path) -> None:
    spec, settings = _settings(launches(model)["decode"].spec)
    config = engine_args(spec, **settings).create_engine_config()
    kind = v2.LogitsProcessor if config.use_v2_model_runner else v1.LogitsProcessor
    assert [issubclass(each, kind) for each in config.model_config.logits_processors] == [True] * 2


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"dtype": "float33"}, r"dtype: Input should be .*'float32' \(got 'float33'\)"),
        ({"max_num_seqs": "many"}, "TypeError: .*'str'"),
        ({"max_model_len": 10_000_000}, "max_model_len .* is greater than the derived"),
        ({"block_size": "large"}, "block_size"),
        ({"structured_outputs_config": {"backend": "auto"}}, "backend is auto; name one backend"),
        ({"structured_outputs_config": {"backend": "best"}}, "backend: Input should be"),
    ],
)
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_values_that_vllm_refuses(
    role: str, engine: dict[str, Any], said: str, model: Path
) -> None:
    check = check_prefill if role == "prefill" else check_decode
    with pytest.raises(Exception) as caught:
        check(launches(model, **engine)[role].spec)
    assert re.search(said, _in_words(caught.value))


@pytest.mark.parametrize("name", ["Mistral 7B v0.1", "Falcon H1"])
def test_models_whose_kv_cannot_be_cut_are_refused(name: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    write_config(family, tmp_path)
    for role, check in (("prefill", check_prefill), ("decode", check_decode)):
        with pytest.raises(ValueError, match=family.refusal):
            check(launches(tmp_path, max_model_len=512)[role].spec)


def test_a_window_that_no_context_exceeds_is_none(tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == "Mistral 7B v0.1")
    write_config(family, tmp_path)
    check_prefill(launches(tmp_path, max_model_len=64, disable_sliding_window=True)["prefill"].spec)


def test_our_scheduler_is_asked_too(model: Path) -> None:
    with pytest.raises(ValueError, match="chunked"):
        check_prefill(launches(model, enable_chunked_prefill=False)["prefill"].spec)


@pytest.mark.slow
def test_each_role_is_asked_in_a_process_of_its_own(model: Path) -> None:
    found = check_engines(launches(model, dtype="float33").values())
    assert [verdict.role for verdict in found] == ["prefill", "decode"]
    assert all("float33" in verdict.problem for verdict in found)
    assert check_engines(launches(model).values()) == [
        Verdict("prefill", "", ""),
        Verdict("decode", "", ""),
    ]
