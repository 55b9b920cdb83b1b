"""What an actor prepares in its process: its engine's address, and what the garbage collector looks at."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import parse_config
from stream2llm.cluster.layout import Factories, lay_out
from stream2llm.serving.actor.actor_shell import RouterShell, WorkerShell

pytestmark = pytest.mark.usefixtures("collector_as_before")

FAKE = "tests.fakes.control_plane:FakeWorker"
VARIABLES = ("VLLM_HOST_IP", "VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT",
             "VLLM_CPU_OMP_THREADS_BIND")  # fmt: skip


async def host_ip(host: str, node_ip: str, tmp_path: Path, **env: str) -> str | None:
    """VLLM_HOST_IP after the start of a worker with that host on that node."""
    (tmp_path / "config.json").write_text("{}")
    config = parse_config({"decode": {"host": host}}, source="test")
    launch = next(
        each for each in lay_out(config, tmp_path, {}, Factories(FAKE, FAKE, FAKE))
        if each.role == "decode"
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, "restored afterwards")
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        shell = WorkerShell(launch, node_ip)
        assert (await shell.start()).error == ""
        await shell.stop()
        return os.environ.get("VLLM_HOST_IP")


@pytest.mark.parametrize(
    ("host", "node_ip", "expected"),
    [
        ("auto", "127.0.0.2", None),
        ("127.0.0.1", "192.0.2.7", None),  # the engine takes loopback itself
        ("0.0.0.0", "192.0.2.7", "192.0.2.7"),
        ("::", "192.0.2.7", "192.0.2.7"),
    ],
)
async def test_an_engine_gets_the_address_that_its_node_is_reached_at(
    host: str, node_ip: str, expected: str | None, tmp_path: Path
) -> None:
    assert await host_ip(host, node_ip, tmp_path) == expected


async def test_an_address_that_the_operator_gave_stays(tmp_path: Path) -> None:
    given = {"VLLM_HOST_IP": "192.0.2.9"}
    assert await host_ip("0.0.0.0", "192.0.2.7", tmp_path, **given) == "192.0.2.9"


# -- garbage ------------------------------------------------------------------------------


FAKES = "tests.fakes.control_plane"
FACTORIES = Factories(f"{FAKES}:FakeRouter", f"{FAKES}:FakeWorker", f"{FAKES}:FakeWorker")


@pytest.fixture
def shells(tmp_path: Path) -> dict[str, RouterShell | WorkerShell]:
    """One of each role, as their actors make them."""
    (tmp_path / "config.json").write_text("{}")
    launches = lay_out(ClusterConfig(), tmp_path, {}, FACTORIES)
    kinds = {"router": RouterShell, "prefill": WorkerShell, "decode": WorkerShell}
    return {each.role: kinds[each.role](each, "127.0.0.1") for each in launches}


@pytest.mark.parametrize("role", ["router", "prefill", "decode"])
async def test_a_started_actor_leaves_nothing_old_to_collect(
    shells: dict[str, RouterShell | WorkerShell], role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT",
                 "VLLM_CPU_OMP_THREADS_BIND"):  # fmt: skip
        monkeypatch.setenv(name, "as before")  # the shell prepares its process
    thresholds = gc.get_threshold()
    assert (await shells[role].start()).error == ""
    assert gc.get_freeze_count() > 10_000
    assert len(gc.get_objects()) < 10_000
    assert gc.get_threshold() > thresholds
    await shells[role].stop()
