"""The example configurations, as far as a machine without GPUs can look at them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stream2llm.cluster import preflight, ray_runtime
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import load_config
from stream2llm.cluster.layout import Factories, lay_out
from stream2llm.cluster.machine_preflight import check_ports
from stream2llm.cluster.ray_checks import check_ray
from stream2llm.cluster.room import Node
from stream2llm.cluster.vllm_preflight import check_part

DEPLOY = Path(__file__).parents[3] / "deploy"
FILES = sorted(DEPLOY.glob("*.yaml"))
ROOM = {"CPU": 2.0}
GPUS = {
    "one-gpu": 1,
    "mixed-one-gpu": 1,
    "gpu-h100": 4,
    "eight-gpus-two-nodes": 8,
    "tensor-parallel-2": 4,
}


@pytest.fixture(
    params=[path for path in FILES if not path.stem.endswith("-cpu")], ids=lambda p: p.stem
)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param.stem)


def configured(name: str, tmp_path: Path) -> ClusterConfig:
    """The file, with a model that is there."""
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 131_072}))
    config = load_config(DEPLOY / f"{name}.yaml")
    return config.model_copy(update={"model": str(tmp_path)})


def test_it_passes_every_check_that_needs_no_node(name: str, tmp_path: Path) -> None:
    config = configured(name, tmp_path)
    checks = preflight.checks(config, on_this_machine=False, runs_vllm=True)
    assert len(checks) > 5
    for each in checks:
        each.run()


def test_it_wants_the_gpus_that_it_is_named_for(name: str, tmp_path: Path) -> None:
    config = configured(name, tmp_path)
    launches = lay_out(config, tmp_path, {}, Factories())
    assert sum(each.num_gpus for each in launches) == GPUS[name]
    for _, part in config.worker_sections:
        ranks = part.engine.get("tensor_parallel_size", 1)
        assert part.num_gpus == ranks or (part.num_gpus < 1 and ranks == 1)
        assert part.engine["dtype"] == "bfloat16"


@pytest.mark.usefixtures("every_port_is_free")
def test_ports_of_replicas_on_one_node_do_not_meet(name: str, tmp_path: Path) -> None:
    check_ports(configured(name, tmp_path))


def test_workers_of_several_nodes_listen_beyond_loopback(name: str, tmp_path: Path) -> None:
    config = configured(name, tmp_path)
    if config.ray.address != "local":
        assert {config.router.host, config.prefill.host, config.decode.host} == {"auto"}


# -- bare metal --------------------------------------------------------------------


def ray_environment() -> dict[str, str]:
    lines = (DEPLOY / "ray" / "ray.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_on_two_nodes_each_role_is_where_the_documented_labels_are() -> None:
    config = load_config(DEPLOY / "ray" / "two-nodes.yaml")
    for role, part in config.worker_sections:
        check_part(role, part)
    text = (DEPLOY.parent / "docs" / "bare-metal.md").read_text()
    given = re.findall(r"ray start .*--labels (\w+)=(\w+)", text)
    present = [Node(f"10.0.0.{n}", dict([each]), ROOM, ROOM) for n, each in enumerate(given)]
    assert len(present) >= 2
    check_ray(config, present)
    roles = {role: part.placement.labels for role, part in config.worker_sections}
    assert roles == {"prefill": {"stream2llm": "prefill"}, "decode": {"stream2llm": "decode"}}


def test_a_stopped_job_is_not_killed_while_it_drains() -> None:
    wait_s = int(ray_environment()[ray_runtime.JOB_STOP_VARIABLE])
    config = load_config(DEPLOY / "ray" / "two-nodes.yaml")
    assert wait_s >= config.router.drain_timeout_s + ray_runtime.JOB_STOP_MARGIN_S


def test_what_our_own_ray_needs_a_joined_one_gets_too() -> None:
    documented = ray_environment()
    for name, value in ray_runtime.environment_of_jobs(ClusterConfig()).items():
        assert name in documented, value
    assert {
        n: documented.get(n) for n in ray_runtime.BUSY_MACHINE_SETTINGS
    } == ray_runtime.BUSY_MACHINE_SETTINGS
