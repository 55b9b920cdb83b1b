"""Nothing of a cluster with the default hosts is reached from outside, or by a local user without a token."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request

import grpc
import psutil
import pytest
import ray
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

from experiments.lab_cluster import workers
from stream2llm.api.grpc_options import channel_options
from stream2llm.api.loopback import is_loopback
from stream2llm.cluster.cluster import Cluster
from stream2llm.serving.http.own_http import open_url
from stream2llm.serving.system.processes import owned_processes
from tests.listening import NOT_THERE, RAY_CALLS, code_of, codes_of, listeners
from tests.polling import eventually
from tests.routes import RPCS


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("sensitive-1x1", marks=pytest.mark.cluster("sensitive-1x1")),
        # With processes, and message queues between them, that the other one does not have.
        pytest.param(
            "sensitive-ranks", marks=[pytest.mark.slow, pytest.mark.cluster("sensitive-ranks")]
        ),
    ],
)
def test_every_listening_socket_is_on_loopback(cluster: Cluster, kind: str) -> None:
    """Routers, workers, their engines, NIXL and UCX, and all of Ray's processes."""
    found = listeners(cluster.cluster_id)
    print(*found, sep="\n")
    assert [str(each) for each in found if not is_loopback(each.host)] == []
    # The list is whole: each process is there that is known to listen.
    owners = {each.owner.partition("/")[0] for each in found}
    assert {"driver", "ray", "controller", "router-0", "prefill-0", "decode-0"} <= owners
    ray_processes = {each.process for each in found if each.owner == "ray/1"}
    known = {"gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent"}
    assert known <= ray_processes
    engines = {each.owner.partition("/")[0] for each in found if each.process.startswith("VLLM::")}
    assert engines == {"prefill-0", "decode-0"}


@pytest.mark.cluster("sensitive-1x1")
async def test_a_job_without_the_token_is_refused_and_never_runs(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The port of Ray's job agent would otherwise be a shell for everyone who reaches it."""
    token = cluster.ray_token_file.read_text()
    await eventually(_agent_port, lambda port: port > 0 or _has_other_ray(), 300.0)
    if await _agent_port() < 1:
        pytest.skip("another Ray on this machine has the port of Ray's job agent, which is fixed")
    assert _post_job(tmp_path / "none") == 401
    assert _post_job(tmp_path / "wrong", "0" * len(token)) == 403
    assert _post_job(tmp_path / "right", token) == 200
    # What is asked for does run with the token, so the others had their time, too.
    made = await eventually(lambda: asyncio.to_thread(os.listdir, tmp_path), bool, 300.0)
    assert made == ["right"]


def _has_other_ray() -> bool:
    """Whether a Ray that is not this test's listens on that port."""
    holders = {
        each.pid
        for each in psutil.net_connections("tcp")
        if each.laddr and each.laddr.port == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT and not each.raddr
    }
    ours = {each.pid for each in psutil.Process().children(recursive=True)}
    return bool(holders - {None} - ours)


async def _agent_port() -> int:
    """The port of Ray's job agent; below 1 while it starts."""
    (node,) = ray.nodes()
    return int(node["DashboardAgentListenPort"])


def _post_job(path: Path, token: str = "") -> int:
    """Asks Ray's agent to create that file; returns the HTTP status."""
    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['DashboardAgentListenPort']}/api/job_agent/jobs/"
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    body = json.dumps({"entrypoint": f"touch {path}"}).encode()
    try:
        with open_url(Request(url, body, headers), 60) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


@pytest.mark.cluster("sensitive-1x1")
def test_a_worker_answers_no_rpc_without_the_token_of_its_cluster(cluster: Cluster) -> None:
    for role in ("prefill", "decode"):
        (worker,) = workers(cluster, role)
        with grpc.insecure_channel(worker.grpc_address, channel_options(1 << 20)) as channel:
            codes = {code_of(channel, call) for call in RPCS}
        assert codes == {grpc.StatusCode.UNAUTHENTICATED}


@pytest.mark.cluster("sensitive-1x1")
def test_ray_answers_no_rpc_without_the_token(cluster: Cluster) -> None:
    refused, answered = set(), []
    for listener in listeners(cluster.cluster_id):
        if listener.process.startswith("VLLM::"):
            continue  # an engine's, which Ray knows nothing of
        for call, code in codes_of(listener, RAY_CALLS):
            if code is grpc.StatusCode.UNAUTHENTICATED:
                refused.add(listener.process)
            elif code not in NOT_THERE:
                answered.append((str(listener), call, code))
    assert answered == []
    assert {"gcs_server", "raylet", "ray::DashboardAgent", "ray::Controller", "ray::RouterActor",
            "ray::PrefillActor", "ray::DecodeActor", "this process"} <= refused  # fmt: skip


@pytest.mark.cluster("sensitive-1x1")
def test_the_token_stands_in_its_file_alone(cluster: Cluster) -> None:
    file = cluster.ray_token_file
    token = file.read_bytes()
    shown = {
        (str(process), what): shows
        for process in owned_processes(f"{cluster.cluster_id}/")
        for what in ("environ", "cmdline")
        if (shows := _shown(process.pid, what)) is not None
    }
    assert shown
    assert [place for place, shows in shown.items() if token in shows] == []
    logs = [path for path in Path(cluster.log_dir).rglob("*") if path.is_file()]
    assert logs
    assert [path for path in logs if token in path.read_bytes()] == []


def _shown(pid: int, what: str) -> bytes | None:
    """What the kernel shows of a process; None of one that has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
