"""The GCS of a Ray is lost: with a Redis the cluster goes on and is adopted; without one it ends, and says so.

Workers have no engine here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.ray_auth import write_token
from stream2llm.cluster.ray_runtime import BUSY_MACHINE_SETTINGS
from stream2llm.serving.system.ports import is_listening, pick_port
from stream2llm.serving.system.processes import (
    kill_owned,
    mark_environment,
    owned_processes,
    owner_mark,
)
from tests import debian
from tests.integration.cluster.test_controller_fake import (
    FACTORIES,
    READY_S,
    SERVE,
    a_config,
    lines_until_ready,
    run_script,
    wait_replaced,
)
from tests.polling import eventually

pytestmark = pytest.mark.slow

RAY = str(Path(sys.executable).with_name("ray"))
MARK = owner_mark(f"test{os.getpid()}", "gcs", 1)
HEAD_MARK = "STREAM2LLM_TEST_HEAD"
TEMP_DIR = f"/tmp/s2l-gcs-{os.getpid()}"  # short: it holds sockets


@contextmanager
def a_redis(folder: Path) -> Iterator[str]:
    """HOST:PORT of a Redis that keeps everything in memory."""
    redis = debian.program("redis-server", "redis-server")
    port = pick_port("127.0.0.1", f"{MARK}redis")
    process = subprocess.Popen(
        [redis, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"],
        env=debian.environment(redis), cwd=folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not is_listening("127.0.0.1", port, 1.0):
            assert process.poll() is None
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray whose tables are in a Redis; its daemons watch no process of it."""
    token = tmp_path / "token"
    write_token(token)
    with a_redis(tmp_path) as redis:
        for name, value in {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_REDIS_ADDRESS": redis,
            "RAY_USAGE_STATS_ENABLED": "0",
            # For all processes: after a minute they would end, and a busy machine may need one.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
        }.items():
            monkeypatch.setenv(name, value)
        port = pick_port("127.0.0.1", f"{MARK}head")
        start = [
            RAY, "start", "--head", "--num-cpus=4", f"--port={port}",
            "--include-dashboard=false", f"--temp-dir={TEMP_DIR}", "--disable-usage-stats",
        ]  # fmt: skip
        environment = {**os.environ, **BUSY_MACHINE_SETTINGS, **mark_environment(MARK)}
        try:
            started = subprocess.run(
                start, env=environment, check=False, capture_output=True, text=True
            )
            assert started.returncode == 0, started.stdout + started.stderr
            yield f"127.0.0.1:{port}"
        finally:
            kill_owned(MARK, timeout_s=30)
            shutil.rmtree(TEMP_DIR, ignore_errors=True)


def gcs_of(mark: str) -> psutil.Process:
    (gcs,) = [p for p in owned_processes(mark) if "gcs_server" in p.command.split()[0]]
    return psutil.Process(gcs.pid)


def start_again(gcs: psutil.Process) -> None:
    """As an operator of Ray would: `gcs` is killed, and another one with its command line begins."""
    command, environment = gcs.cmdline(), gcs.environ()
    gcs.kill()
    subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


async def outlive_the_gcs(address: str, folder: str) -> None:
    """In a process of its own, which Ray may end: a cluster on the Ray at `address` loses its GCS."""
    config = a_config(Path(folder), replicas=1)
    config = config.model_copy(update={"ray": config.ray.model_copy(update={"address": address})})
    with Cluster.start(config, factories=FACTORIES) as cluster:
        cluster.wait_ready(READY_S)
        before = cluster.status()
        start_again(gcs_of(os.environ[HEAD_MARK]))
        # The controller dies while its table is away or just back.
        (controller,) = owned_processes(f"{cluster.cluster_id}/controller/")
        os.kill(controller.pid, signal.SIGKILL)

        async def restarts() -> int:
            return int(cluster.status()["controller_restarts"])

        await eventually(restarts, lambda n: n == 1, timeout_s=READY_S)
        after = cluster.status()
        same: tuple[str, ...] = ("name", "incarnation", "address")
        assert _only(same, after) == _only(same, before)
        dead = next(r for r in after["replicas"] if r["name"] == "decode-0")
        os.kill(dead["address"]["pids"][0], signal.SIGKILL)
        wait_replaced(cluster, "decode-0", dead)
    assert owned_processes(f"{cluster.cluster_id}/") == ()


def test_with_a_redis_the_cluster_goes_on_and_its_controller_is_adopted(
    head: str, tmp_path: Path
) -> None:
    program = (
        "import asyncio, sys; from tests.integration.cluster.test_gcs import outlive_the_gcs as run;"
        " asyncio.run(run(*sys.argv[1:]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, head, str(tmp_path)], cwd=Path(__file__).parents[3],
        env={**os.environ, HEAD_MARK: MARK}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert owned_processes(MARK)


def _only(keys: tuple[str, ...], status: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: each[key] for key in keys} for each in status["replicas"]]


def test_without_a_redis_there_is_one_clear_error_and_nothing_left(tmp_path: Path) -> None:
    process = run_script(tmp_path, SERVE)
    cluster_id = lines_until_ready(process)[0]
    gcs_of(f"{cluster_id}/ray/").kill()
    _, err = process.communicate(timeout=READY_S)
    assert process.returncode != 0
    assert "the Ray of this cluster has lost its gcs_server" in err
    assert owned_processes(cluster_id) == ()
