"""deploy/systemd: units that systemd takes, whose commands and times are the code's."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.scripts.scripts import start as ray_start

from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.ray_hosts import DRAIN_MARGIN_S, GRACEFUL_STOP_S
from tests.command_lines import parse

FOLDER = Path(__file__).parents[3] / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
BIN = "/opt/stream2llm/bin/"


@pytest.fixture(params=UNITS, ids=lambda path: path.stem)
def unit(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """Every key of a unit with its values; sections have no key in common."""
    return read(request.param)


def read(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def the(unit: dict[str, list[str]], key: str) -> str:
    (value,) = unit[key]
    return value


def variables(unit: dict[str, list[str]]) -> dict[str, str]:
    pairs = [pair for line in unit["Environment"] for pair in shlex.split(line)]
    return dict(pair.split("=", 1) for pair in pairs)


def of_nodes() -> dict[str, str]:
    lines = shlex.split((FOLDER / "node.env").read_text(), comments=True)
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    here = str(Path(sys.executable).parent) + "/"
    for path in UNITS:
        (tmp_path / path.name).write_text(path.read_text().replace(BIN, here))
    command = ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_command_parses(unit: dict[str, list[str]]) -> None:
    text = re.sub(r"\$\{(\w+)\}", lambda found: of_nodes()[found[1]], the(unit, "ExecStart"))
    assert text.startswith(BIN)
    words = shlex.split(text.removeprefix(BIN))
    program = words.pop(0)
    if program == "stream2llm":
        parse(words)
    else:
        assert (program, words.pop(0)) == ("ray", "start")
        assert ray_start.make_context("start", words).params["block"]


def test_it_runs_without_privileges_but_reaches_devices_and_shared_memory(
    unit: dict[str, list[str]],
) -> None:
    assert the(unit, "User") == "stream2llm"
    assert the(unit, "NoNewPrivileges") == "yes"
    assert the(unit, "CapabilityBoundingSet") == ""
    assert the(unit, "ProtectSystem") == "strict"
    # GPUs and RDMA; UCX and Ray; kernels that are compiled at run time.
    assert not unit.keys() & {
        "PrivateDevices",
        "PrivateIPC",
        "ProcSubset",
        "MemoryDenyWriteExecute",
    }
    assert "AF_NETLINK" in the(unit, "RestrictAddressFamilies").split()
    assert the(unit, "LimitMEMLOCK") == "infinity"


def test_a_drain_has_the_time_it_needs(unit: dict[str, list[str]]) -> None:
    # As deploy/kubernetes has it, the longest of the examples.
    needs_s = 120 + 4 * DRAIN_MARGIN_S + 4 * GRACEFUL_STOP_S
    assert ClusterConfig().router.drain_timeout_s <= 120
    if "stream2llm up" in the(unit, "ExecStart"):
        assert float(the(unit, "TimeoutStopSec")) > needs_s
        # SIGTERM to `up` alone: it drains what the others of the unit still run.
        assert the(unit, "KillMode") == "mixed"
    else:
        assert float(variables(unit)["RAY_JOB_STOP_WAIT_TIME_S"]) >= needs_s


def test_what_joins_a_ray_has_its_token_and_its_sockets() -> None:
    head, worker, cluster = (
        read(FOLDER / f"{name}.service") for name in ("ray-head", "ray-worker", "stream2llm")
    )
    for each in (head, worker, cluster):
        name, _, _ = the(each, "LoadCredential").partition(":")
        assert variables(each)["RAY_AUTH_MODE"] == "token"
        assert variables(each)["RAY_AUTH_TOKEN_PATH"] == f"/run/credentials/%n/{name}"
    assert the(cluster, "JoinsNamespaceOf") == the(cluster, "Requires") == "ray-head.service"
    assert the(head, "PrivateTmp") == the(cluster, "PrivateTmp") == "yes"


def port(option: str, unit: dict[str, list[str]]) -> Any:
    return re.findall(rf"--{option}=(?:\S+:)?(\d+)", the(unit, "ExecStart"))


def test_workers_join_where_the_head_listens() -> None:
    head, worker = (read(FOLDER / f"ray-{name}.service") for name in ("head", "worker"))
    assert port("port", head) == port("address", worker) == ["6379"]
    # A user who may submit jobs has a shell: not beyond this machine.
    assert "--dashboard-host=127.0.0.1" in the(head, "ExecStart")


def test_the_example_of_a_node_s_environment_has_what_the_units_ask_for() -> None:
    wanted = {name for path in UNITS for name in re.findall(r"\$\{(\w+)\}", path.read_text())}
    assert wanted == of_nodes().keys()
    assert json.loads(of_nodes()["RESOURCES"]) == {}
