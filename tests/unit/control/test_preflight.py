"""Checks before anything is started."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefill_worker.policy import POLICIES
from stream2llm.api.errors import (
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
    UnsupportedError,
)
from stream2llm.cluster import preflight, ray_runtime
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import default_config, load_config, parse_config
from stream2llm.cluster.exposure import check_authentication, check_encryption, check_tls_files
from stream2llm.cluster.layout import Factories, common_environment, lay_out
from stream2llm.cluster.machine_preflight import check_cores, check_memory, check_ports
from stream2llm.cluster.vllm_preflight import check_deterministic, check_environment
from stream2llm.engine import arguments as engine_arguments
from stream2llm.engine.kv_digest import UNCOVERED_SPLITS
from stream2llm.engine.model_runner import RUNNER_VARIABLE
from stream2llm.models.errors import ModelStoreError
from stream2llm.security.key_edit import create_key
from stream2llm.serving.settings.launch import cores_of
from stream2llm.serving.settings.worker_options import PrefillOptions
from stream2llm.serving.system.clock import SystemClock
from tests.refusals import refused
from tests.tls_files import Authority

GIB = 1024**3
HERE = "127.0.0.1"
DEPLOY = Path(__file__).parents[3] / "deploy"


def a_config(**parts: Any) -> ClusterConfig:
    return parse_config(parts, source="test")


def check_engines(config: ClusterConfig) -> None:
    """Runs the checks of what the engines are set by."""
    for each in preflight.checks(config, on_this_machine=False, runs_vllm=True):
        named = ("grammar backends", "reasoning", "KV digests")
        if each.what.endswith("engine") or each.what in named:
            each.run()


def a_model(folder: Path, **keys: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 2048, **keys}))
    return folder


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_configurations_load(path: Path) -> None:
    config = load_config(path)
    check_engines(config)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(ModelStoreError, match=str(missing)):
        preflight.check_model(a_config(model=str(missing)))


def test_a_taken_port_is_named_with_its_key() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"port {port} .*router\.port"):
            check_ports(a_config(router={"port": port}))


@pytest.mark.usefixtures("every_port_is_free")
def test_a_port_meant_for_two_is_refused() -> None:
    config = a_config(router={"port": 20001}, prefill={"metrics_port": 20001})
    with pytest.raises(InvalidRequestError, match="both ask for port 20001"):
        check_ports(config)


def test_too_little_memory_names_both_numbers() -> None:
    part = {"env": {"VLLM_CPU_KVCACHE_SPACE": "4"}, "replicas": 2}
    config = a_config(prefill=part, decode=part)
    with pytest.raises(OverloadedError, match=r"need about 22\.8 GiB .* 8\.0 GiB are available"):
        check_memory(config, 0, available_bytes=8 * GIB, total_bytes=16 * GIB)


def test_enough_memory_passes() -> None:
    part = {"env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    config = a_config(prefill=part, decode=part)
    check_memory(config, GIB // 4, available_bytes=8 * GIB, total_bytes=16 * GIB)


def test_without_a_cache_size_vllm_takes_its_share_of_all_memory() -> None:
    with pytest.raises(OverloadedError, match=r"prefill: 16\.4 GiB"):
        check_memory(a_config(), 0, available_bytes=16 * GIB, total_bytes=16 * GIB)


def test_gpu_workers_need_no_host_memory() -> None:
    config = a_config(prefill={"num_gpus": 1}, decode={"num_gpus": 1})
    check_memory(config, 0, available_bytes=0, total_bytes=GIB)


@pytest.mark.parametrize(
    ("bind", "message"),
    [("0-3", r"no such cores here: \[2, 3\]"), ("0;1;1", "3 replicas"), ("x", "'x' is neither")],
)
def test_bad_core_lists_are_refused(bind: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        check_cores(a_config(prefill={"cpu_bind": bind}), frozenset({0, 1}))


def test_without_a_prefix_cache_at_decode_kv_crosses_at_the_seal() -> None:
    decode = {"engine": {"enable_prefix_caching": False}}
    assert a_config().handover_mode == "streamed"
    assert a_config(decode=decode).handover_mode == "at_seal"
    assert a_config(handover="at_seal").handover_mode == "at_seal"
    with pytest.raises(InvalidRequestError, match=r"needs decode\.engine\.enable_prefix_caching"):
        a_config(decode=decode, handover="streamed")


def test_engine_arguments_of_ours_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"decode\.engine\.kv_transfer_config"):
        check_engines(a_config(decode={"engine": {"kv_transfer_config": {}}}))


def test_two_grammar_backends_are_refused() -> None:
    part = {"engine": {"structured_outputs_config": {"backend": "guidance"}}}
    with refused(
        r"structured_outputs_config differ", field="decode.engine.structured_outputs_config"
    ):
        check_engines(a_config(decode=part))
    check_engines(a_config(prefill=part, decode=part))


def test_reasoning_that_two_parsers_would_end_is_refused() -> None:
    part = {"engine": {"structured_outputs_config": {"reasoning_parser": "qwen3"}}}
    workers = {"prefill": part, "decode": part}
    with pytest.raises(InvalidRequestError, match="exclude each other") as raised:
        check_engines(a_config(gateway={"reasoning_parser": "qwen3"}, **workers))
    field = "prefill.engine.structured_outputs_config.reasoning_parser"
    assert raised.value.field == field
    check_engines(a_config(gateway={"tool_parser": "hermes"}, **workers))


def test_cores_are_given_in_turn() -> None:
    assert [cores_of("auto", 0, i, (2, 5)) for i in range(3)] == ["2", "5", "2"]
    assert [cores_of("0-1;2-3", i, 9, ()) for i in range(2)] == ["0-1", "2-3"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"policy": "lifo"}, r"prefill\.policy: .*'lifo'; there are " + ", ".join(POLICIES)),
        ({"policy": None}, r"prefill\.policy: .*valid string"),
        ({"starvation_guard_steps": 0}, r"prefill\.starvation_guard_steps: .*greater than or equal to 1.*got 0"),
        ({"starvation_guard_steps": "soon"}, r"prefill\.starvation_guard_steps: .*integer.*'soon'"),
        ({"open_step_target_ms": 0}, r"prefill\.open_step_target_ms: .*greater than or equal to 1.*got 0"),
    ],
)  # fmt: skip
def test_a_bad_scheduling_option_is_named_with_what_is_allowed(
    part: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        a_config(prefill=part)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"policy": "nowhere.at_all:lifo"}, r"prefill\.policy: .*nowhere\.at_all:lifo cannot be"),
        ({"extra_policies": ["json:dump"]}, r"prefill\.extra_policies: .*json:dump failed for"),
    ],
)
def test_a_policy_by_import_path_is_followed_before_the_start(
    part: dict[str, Any], message: str
) -> None:
    with refused(message, reason="BAD_POLICY"):
        preflight.check_policies(a_config(prefill=part))


def test_an_import_path_has_a_module_and_a_name() -> None:
    with pytest.raises(InvalidRequestError, match=r"prefill\.extra_policies\.0: .*'lifo'"):
        a_config(prefill={"extra_policies": ["lifo"]})


def test_a_worker_that_starts_with_another_policy_still_knows_the_configured_one() -> None:
    config = a_config(prefill={"policy": "mine:lifo", "extra_policies": ["mine:fifo"]})
    options = config.worker_options.with_policy("fcfs").prefill
    assert options.policy == "fcfs"
    assert options.import_paths == config.prefill.import_paths == ("mine:lifo", "mine:fifo")


def test_scheduling_options_reach_prefill_workers_alone(tmp_path: Path) -> None:
    config = a_config(
        prefill={"policy": "mcps", "starvation_guard_steps": 7, "open_step_target_ms": 512}
    )
    launches = lay_out(config, a_model(tmp_path), {}, Factories())
    by_name: dict[str, Any] = {launch.name: launch.spec for launch in launches}
    assert by_name["prefill-0"].options.prefill == PrefillOptions(
        policy="mcps", starvation_guard_steps=7, open_step_target_ms=512
    )
    with pytest.raises(InvalidRequestError, match=r"unknown key decode\.policy"):
        a_config(decode={"policy": "mcps"})


@pytest.mark.usefixtures("every_port_is_free")
def test_routers_with_nodes_of_their_own_have_the_same_ports(tmp_path: Path) -> None:
    router = {"replicas": 3, "port": 7000, "metrics_port": 7001, "one_per_node": True}
    with pytest.raises(InvalidRequestError, match=r"one_per_node needs placement\.resources"):
        a_config(router=router)
    config = a_config(router={**router, "placement": {"resources": {"router": 1}}})
    check_ports(config)  # which would meet if they followed each other
    specs = [launch.spec for launch in lay_out(config, a_model(tmp_path), {}, Factories())][:3]
    assert [(spec.port, spec.metrics_port) for spec in specs] == [(7000, 7001)] * 3


@pytest.mark.parametrize(("inherited", "of_decode"), [(None, "0"), ("1", "1"), ("0", "0")])
def test_the_model_runner_is_v1_unless_the_environment_or_a_role_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inherited: str | None, of_decode: str
) -> None:
    monkeypatch.delenv(RUNNER_VARIABLE, raising=False)
    if inherited is not None:
        monkeypatch.setenv(RUNNER_VARIABLE, inherited)
    config = a_config(prefill={"env": {RUNNER_VARIABLE: "1"}})
    check_engines(config)
    launches = lay_out(config, a_model(tmp_path), common_environment(), Factories())
    found = {launch.role: launch.environment[RUNNER_VARIABLE] for launch in launches}
    assert (found["prefill"], found["decode"]) == ("1", of_decode)


def test_launches_have_names_ports_and_environment(tmp_path: Path) -> None:
    config = a_config(
        router={"replicas": 2, "port": 7000},
        prefill={"engine": {"max_model_len": 512}, "env": {"HF_HUB_OFFLINE": "0"}},
        decode={"replicas": 2, "metrics_port": 9000},
    )
    launches = lay_out(config, a_model(tmp_path), common_environment(), Factories())
    by_name: dict[str, Any] = {launch.name: launch for launch in launches}
    assert list(by_name) == ["router-0", "router-1", "prefill-0", "decode-0", "decode-1"]
    assert (by_name["router-1"].spec.port, by_name["decode-1"].spec.metrics_port) == (7001, 9001)
    assert by_name["router-0"].spec.max_model_len == 512
    assert [by_name[n].core_index for n in ("prefill-0", "decode-0", "decode-1")] == [0, 1, 2]
    assert by_name["prefill-0"].environment["HF_HUB_OFFLINE"] == "0"


# -- what vLLM has, by its own word --------------------------------------------


@pytest.mark.parametrize(
    ("role", "part", "message"),
    [
        ("prefill", {"engine": {"max_num_sqs": 4}}, r"max_num_sqs: .*did you mean max_num_seqs\?"),
        ("decode", {"engine": {"max-model-len": 4}}, r"did you mean max_model_len\?"),
        ("prefill", {"engine": {"zzz": 4}}, r"prefill\.engine\.zzz: vLLM has no such engine argument$"),
        ("prefill", {"engine": {"async_scheduling": True}}, r"is set by Stream2LLM itself \(a prefill"),
        ("decode", {"engine": {"enable_log_requests": True}}, r"is set by Stream2LLM itself"),
        (
            "decode",
            {"env": {"VLLM_CPU_KVCACHE_SPACE": "0.5"}},
            r"decode\.env\.VLLM_CPU_KVCACHE_SPACE: vLLM cannot take '0\.5'",
        ),
        ("prefill", {"env": {"VLLM_CPU_KVCACHE_SPACES": "1"}}, r"did you mean VLLM_CPU_KVCACHE_SPACE\?"),
    ],
)  # fmt: skip
def test_what_vllm_cannot_take_is_named_before_anything_starts(
    role: str, part: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        check_engines(a_config(**{role: part}))
    assert caught.value.field.startswith(f"{role}.")


def test_variables_that_no_vllm_has_are_a_plugins_business() -> None:
    env = {"VLLM_ASCEND_ENABLE_X": "1", "UCX_TLS": "tcp", "VLLM_LOGGING_LEVEL": "WARNING"}
    check_engines(a_config(prefill={"env": env}))


def test_inherited_variables_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "half")
    with pytest.raises(InvalidRequestError, match=r"environment\.VLLM_CPU_KVCACHE_SPACE: .*'half'"):
        check_environment()
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "half"


def test_names_are_those_of_the_installed_vllms_own_class() -> None:
    from vllm import envs
    from vllm.engine.arg_utils import AsyncEngineArgs

    fields = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert engine_arguments.known_arguments() == fields
    assert engine_arguments.known_variables().keys() == envs.environment_variables.keys()
    assert engine_arguments.RESERVED.keys() <= fields
    assert engine_arguments.RESERVED_PREFILL.keys() <= fields


def test_all_that_prefill_fixes_is_reserved() -> None:
    from prefill_worker.engine import FIXED_ARGS

    reserved = {**engine_arguments.RESERVED, **engine_arguments.RESERVED_PREFILL}
    assert FIXED_ARGS.keys() <= reserved.keys()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"env": {"VLLM_CPU_KVCACHE_SPACE": "0.5"}}, "VLLM_CPU_KVCACHE_SPACE must be a whole number"),
        ({"env": {"VLLM_CPU_KVCACHE_SPACE": "-1"}}, "at least 0, not '-1'"),
        ({"engine": {"gpu_memory_utilization": "lots"}}, "must be a number, at least 0, not 'lots'"),
        ({"engine": {"kv_cache_memory_bytes": "1G"}}, "kv_cache_memory_bytes must be a whole number"),
        ({"engine": {"gpu_memory_utilization": float("nan")}}, "not nan"),
    ],
)  # fmt: skip
def test_sizes_that_are_none_are_named(part: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        check_memory(a_config(prefill=part), 0, available_bytes=GIB, total_bytes=GIB)


@pytest.mark.parametrize("pool_gib", [-1, float("nan"), float("inf"), 1e308])
def test_an_offload_pool_that_no_machine_holds_is_named(pool_gib: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"prefill\.offload_pool_gib"):
        a_config(prefill={"offload_pool_gib": pool_gib})


@pytest.mark.parametrize("length", ["8k", 0, -1, 1.5])
def test_a_context_length_that_is_none_is_named(length: Any, tmp_path: Path) -> None:
    config = a_config(model=str(a_model(tmp_path)), decode={"engine": {"max_model_len": length}})
    with pytest.raises(InvalidRequestError, match=r"decode\.engine\.max_model_len must be"):
        preflight.check_model(config)


@pytest.mark.parametrize("text", ["", "[]", '{"max_position_embeddings": "many"}', "\x00"])
def test_a_folder_that_is_no_model_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidRequestError, match=r"config\.json is no model's"):
        preflight.check_model(a_config(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"a: [1", r"not YAML: .*\(line 1, column 6\)$"),
        (b"- 1", "the top level"),
        (b"5", "the top level"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=message) as caught:
        load_config(path)
    assert "\n" not in caught.value.message


# -- deterministic ----------------------------------------------------------------


def test_deterministic_answers_are_refused_on_cpus_with_what_holds_there() -> None:
    with refused(
        r"no batch-invariant mode on CPUs.*float32", field="deterministic", error=UnsupportedError
    ):
        check_deterministic(a_config(deterministic=True))
    check_deterministic(a_config())


def test_deterministic_answers_ask_vllm_on_gpus(tmp_path: Path) -> None:
    part = {"num_gpus": 1, "env": {"VLLM_BATCH_INVARIANT": "0"}}
    config = a_config(deterministic=True, prefill=part, decode=part)
    check_deterministic(config)
    launches = lay_out(config, a_model(tmp_path), {}, Factories())
    asked = {each.name: each.environment.get("VLLM_BATCH_INVARIANT") for each in launches}
    assert asked == {"router-0": None, "prefill-0": "1", "decode-0": "1"}
    assert "VLLM_BATCH_INVARIANT" in engine_arguments.known_variables()


# -- the file that comes with the package -------------------------------------------


def test_the_packages_configuration_is_that_of_the_checkout() -> None:
    assert default_config().read_bytes() == (DEPLOY / "local-cpu.yaml").read_bytes()
    settings = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    shipped = settings["tool"]["setuptools"]["package-data"]["stream2llm"]
    assert f"cluster/{default_config().name}" in shipped


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with socket.socket() as holder:  # bound, not listening: the port stays free of others
        holder.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        config = a_config(ray={"address": address})
        with pytest.raises(UnavailableError, match=f"nothing listens on {address}"):
            ray_runtime.connect(config, "cluster", "")


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"num_gpus": 1, "engine": {"tensor_parallel_size": 2}}, "num_gpus"),
        ({"num_gpus": 2, "engine": {"tensor_parallel_size": 4}}, "num_gpus"),
        ({"engine": {"distributed_executor_backend": "ray"}}, "engine.distributed_executor_backend"),
    ],
)  # fmt: skip
def test_ranks_that_the_actor_has_no_gpu_for_are_refused(part: Any, field: str) -> None:
    with refused(field=f"decode.{field}"):
        check_engines(a_config(decode=part))


def test_ranks_of_a_cpu_engine_need_no_gpu() -> None:
    check_engines(a_config(decode={"engine": {"tensor_parallel_size": 2}}))


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("name", UNCOVERED_SPLITS)
def test_engines_whose_kv_no_digest_covers_are_refused(role: str, name: str) -> None:
    part = {role: {"engine": {name: 2}}}
    with refused(r"is 2, and digests.*handover\.kv_digest: false", field=f"{role}.engine.{name}"):
        check_engines(a_config(**part))
    check_engines(a_config(handover={"kv_digest": False}, **part))


def test_mixed_workers_alone_hand_nothing_over() -> None:
    check_engines(a_config(mixed={"engine": {"pipeline_parallel_size": 2}}))


@pytest.mark.parametrize(("set_by_operator", "wait_s"), [(None, "105"), ("7", "7")])
def test_jobs_of_our_own_ray_have_time_to_drain(
    set_by_operator: str | None, wait_s: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ray_runtime.JOB_STOP_VARIABLE, raising=False)
    if set_by_operator is not None:
        monkeypatch.setenv(ray_runtime.JOB_STOP_VARIABLE, set_by_operator)
    config = a_config(router={"drain_timeout_s": 44.5})
    assert ray_runtime.environment_of_jobs(config) == {"RAY_JOB_STOP_WAIT_TIME_S": wait_s}


@pytest.mark.parametrize("num_failures", [0, 2, 3])
def test_a_ray_that_times_out_in_its_start_is_started_again(
    num_failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray waits 30 s for its own processes, too little on a busy machine."""
    outcomes: list[Any] = [Exception("The current node timed out during startup.")] * num_failures
    outcomes.append(SimpleNamespace(address_info={"session_dir": "/tmp/session"}))
    variables, wait = [], "RAY_gcs_server_port_wait_time_s"

    def init(**_options: Any) -> Any:
        variables.append(os.environ.get(wait))
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(ray_runtime.ray, "init", init)
    config = a_config(ray={"auth_mode": "disabled"})
    if num_failures < 3:
        assert ray_runtime.connect(config, f"test{os.getpid()}", "mark/") == "/tmp/session/logs"
        assert variables == ["120"] * (num_failures + 1)
    else:
        with pytest.raises(UnavailableError, match="cannot start Ray: The current node timed out"):
            ray_runtime.connect(config, f"test{os.getpid()}", "mark/")


@pytest.mark.parametrize("section", ["controller", "router", "prefill", "decode"])
@pytest.mark.parametrize("host", ["auto", "0.0.0.0", "10.0.0.7", "node-1"])
def test_plain_text_beyond_loopback_is_refused_by_the_host_s_key(section: str, host: str) -> None:
    part = {section: {"host": host}}
    checks = preflight.checks(a_config(**part), on_this_machine=False, runs_vllm=False)
    (encryption,) = (each for each in checks if each.what == "encryption")
    with refused(f"{section}.host {host} is reached", field=f"{section}.host"):
        encryption.run()


@pytest.mark.parametrize("section", ["controller", "router", "prefill", "decode"])
@pytest.mark.parametrize("host", ["auto", "0.0.0.0", "node-1"])
def test_nothing_serves_everybody_beyond_loopback_unless_asked_by_name(
    section: str, host: str, tmp_path: Path
) -> None:
    part: dict[str, Any] = {section: {"host": host}}
    checks = preflight.checks(a_config(**part), on_this_machine=False, runs_vllm=False)
    (authentication,) = (each for each in checks if each.what == "authentication")
    with refused(f"{section}.host {host} is reached", reason="UNAUTHENTICATED_REFUSED"):
        authentication.run()
    check_authentication(a_config(**{section: {"host": "::1"}}))
    tls = {name: f"/{name}" for name in ("certificate", "key", "ca", "client_ca")}
    proxy = {"tenant_header": "x-tenant", "peers": ["gateway"]}
    oidc = {"issuer": "i", "audience": "a", "jwks": "https://issuer/keys"}
    for security in (
        {"unauthenticated_beyond_loopback": True},
        {"auth": {"keys_file": "/keys.jsonl"}},
        {"auth": {"proxy": proxy}},
        {"auth": {"oidc": oidc}},
        {"tls": tls},
    ):
        check_authentication(a_config(**part, security=security))
    with pytest.raises(InvalidRequestError, match=r"security\.auth"):
        check_authentication(a_config(**part, security={"tls": {**tls, "client_ca": None}}))


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ({"keys_file": "keys.jsonl"}, r"security\.auth\.keys_file: .*absolute path"),
        ({"oidc": {"jwks": "http://issuer/keys"}}, r"security\.auth\.oidc\.jwks: .*https://"),
        ({"oidc": {"jwks": "keys.json"}}, r"security\.auth\.oidc\.jwks: .*absolute path"),
        ({"oidc": {"algorithms": ["HS256"]}}, r"security\.auth\.oidc\.algorithms"),
        ({"oidc": {"algorithms": []}}, r"security\.auth\.oidc\.algorithms"),
        ({"proxy": {"tenant_header": "X Tenant"}}, r"security\.auth\.proxy\.tenant_header"),
        ({"proxy": {"peers": []}}, r"security\.auth\.proxy\.peers"),
    ],
)
def test_credentials_that_would_not_protect_are_refused_by_their_key(
    auth: dict[str, Any], message: str
) -> None:
    whole = {
        "oidc": {"issuer": "i", "audience": "a", "jwks": "https://issuer/keys"},
        "proxy": {"tenant_header": "x-tenant", "peers": ["loopback"]},
    }
    ((name, part),) = auth.items()
    value = {**whole[name], **part} if isinstance(part, dict) else part
    with pytest.raises(InvalidRequestError, match=message):
        a_config(security={"auth": {name: value}})


def test_a_file_of_keys_that_cannot_be_used_is_named_before_the_start(tmp_path: Path) -> None:
    config = a_config(security={"auth": {"keys_file": str(tmp_path / "keys.jsonl")}})
    checks = preflight.checks(config, on_this_machine=True, runs_vllm=False)
    (keys,) = (each for each in checks if each.what == "API keys")
    with pytest.raises(InvalidRequestError, match=r"keys\.jsonl: cannot be read"):
        keys.run()
    create_key(tmp_path / "keys.jsonl", "a", [])
    keys.run()


def test_every_worker_and_router_gets_the_token_and_none_shows_it(tmp_path: Path) -> None:
    launches = lay_out(
        a_config(), a_model(tmp_path), {}, Factories(), cluster_token="the secret token"
    )
    assert {launch.spec.cluster_token for launch in launches} == {"the secret token"}
    assert "the secret token" not in repr(launches)


def test_plain_text_is_for_loopback_or_asked_for_by_name(tmp_path: Path) -> None:
    security = Authority().security(tmp_path)
    everywhere = {name: {"host": "auto"} for name in ("controller", "router", "prefill", "decode")}
    check_encryption(a_config(**{name: {"host": "::1"} for name in everywhere}))
    check_encryption(a_config(**everywhere, security={"plaintext_beyond_loopback": True}))
    check_encryption(a_config(**everywhere, security=security.model_dump()))


def test_tls_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    authority = Authority()
    security = authority.security(tmp_path)
    config = a_config(security=security.model_dump())
    check_tls_files(config, HERE, SystemClock())
    check_tls_files(a_config(), HERE, SystemClock())
    authority.renew(security.tls.files, days=-1)
    with refused(r"tls.crt expired at 20", field="security.tls.certificate"):
        check_tls_files(config, HERE, SystemClock())
    security.tls.ca.unlink()
    (files,) = (
        each
        for each in preflight.checks(config, on_this_machine=True, runs_vllm=False)
        if each.what == "TLS files"
    )
    with pytest.raises(InvalidRequestError, match=r"security.tls.ca: .*cannot be read"):
        files.run()


@pytest.mark.parametrize(
    ("names", "changes", "problem"),
    [
        (["127.0.0.1"], {}, ""),
        (["127.0.0.1"], {"router": {"host": "auto"}}, "that connect to 10.0.0.7 .* not valid for"),
        (["127.0.0.1", "10.0.0.7"], {"router": {"host": "auto"}}, ""),
        (["cluster"], {"decode": {"host": "auto"}, "peer_name": "cluster"}, ""),
        (["127.0.0.1"], {"peer_name": "cluster"}, "that connect to cluster .* not valid for"),
    ],
)
def test_a_certificate_has_the_names_by_which_peers_connect(
    names: list[str], changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    authority, rest = Authority(), dict(changes)
    security = authority.security(tmp_path)
    authority.renew(security.tls.files, *names)
    tls = security.tls.model_copy(update={"peer_name": rest.pop("peer_name", None)})
    config = a_config(security={"tls": tls.model_dump()}, **rest)
    if not problem:
        check_tls_files(config, "10.0.0.7", SystemClock())
        return
    with refused(problem, field="security.tls.certificate"):
        check_tls_files(config, "10.0.0.7", SystemClock())


def test_a_certificate_of_another_authority_is_found_before_the_start(tmp_path: Path) -> None:
    security = Authority().security(tmp_path)
    Authority().renew(security.tls.files)
    with pytest.raises(InvalidRequestError, match="unable to get local issuer certificate"):
        check_tls_files(a_config(security=security.model_dump()), HERE, SystemClock())


def test_a_relative_path_of_a_certificate_is_refused() -> None:
    tls = {"certificate": "tls.crt", "key": "/k", "ca": "/c"}
    with pytest.raises(InvalidRequestError, match=r"security.tls.certificate: .*absolute path"):
        a_config(security={"tls": tls})
