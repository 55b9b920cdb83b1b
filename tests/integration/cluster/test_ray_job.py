"""`up` as the entrypoint of a Ray job, on a Ray cluster that is not ours and asks for a token."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from stream2llm.client import SamplingParameters, connect_sync
from stream2llm.cluster.ray_auth import write_token
from stream2llm.serving.system.ports import pick_port
from stream2llm.serving.system.processes import (
    kill_owned,
    mark_environment,
    owned_processes,
    owner_mark,
)
from tests.cluster_pool import Kind, config_of, model_path

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
RAY = str(Path(sys.executable).with_name("ray"))
HEAD_MARK = owner_mark(f"test{os.getpid()}", "head", 1)
JOB_ID = "stream2llm-test"
TEMP_DIR = f"/tmp/s2l-test-{os.getpid()}"  # short: it holds sockets


def ray_environment(token: Path | None) -> dict[str, str]:
    """Environment of the head and of Ray's commands, with a token or without one."""
    own = {"PYTHONPATH", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    kept = {key: value for key, value in os.environ.items() if key not in own}
    more = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    if token is not None:
        more |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # A job that is stopped gets so long to drain before it is killed: a bound against a hang.
    return {**kept, **more, "RAY_JOB_STOP_WAIT_TIME_S": "300"}


@dataclass(frozen=True, slots=True)
class Head:
    """A Ray head that runs: where it is, and the file with its token."""

    gcs_address: str
    jobs_address: str
    token: Path


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """In processes of its own; ended by their mark, never by `ray stop`."""
    ports = [pick_port("127.0.0.1", f"{HEAD_MARK}{n}") for n in range(2)]
    token = tmp_path_factory.mktemp("head") / "token"
    write_token(token)
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--num-cpus=4", f"--port={ports[0]}",
         f"--dashboard-port={ports[1]}", "--dashboard-host=127.0.0.1",
         f"--temp-dir={TEMP_DIR}", "--disable-usage-stats",
         "--labels=rack=a", '--resources={"slot": 1}'],
        env={**ray_environment(token), **mark_environment(HEAD_MARK)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        _read_until(process, "Ray runtime started")
        yield Head(f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", token)
    finally:
        kill_owned(HEAD_MARK, timeout_s=30)
        process.communicate()
        shutil.rmtree(TEMP_DIR)


def _read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError("".join(lines))


def a_config_file(folder: Path) -> Path:
    """A real cluster of one router, one prefill and one decode worker."""
    config = config_of(Kind(model=str(model_path("random-llama-sensitive"))))
    tree = config.model_dump(mode="json")
    tree["ray"]["address"] = "auto"
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def submit(head: Head, code: Path, entrypoint: list[str]) -> subprocess.Popen[str]:
    """`ray job submit`, repeated while the head's job agent is still starting."""
    options = [
        "--address",
        head.jobs_address,
        "--submission-id",
        JOB_ID,
        "--working-dir",
        str(code),
    ]
    while True:
        job = subprocess.Popen(
            [RAY, "job", "submit", *options, "--", *entrypoint],
            env=ray_environment(head.token), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _read_until(job, "submitted successfully")
            return job
        except AssertionError as error:
            job.communicate()
            if "No available agent" not in str(error):
                raise


def router_of(lines: list[str]) -> str:
    """The address that `up` printed."""
    (line,) = [line for line in lines if line.startswith("router-0: ")]
    return line.removeprefix("router-0: ").strip()


def ask(address: str) -> int:
    """Streams two documents in; how many tokens came back."""
    sampling = SamplingParameters(max_tokens=5, temperature=0.0, ignore_eos=True)
    with connect_sync(address) as client, client.session(sampling=sampling) as session:
        session.append([1, 2, 3])
        session.append([4, 5])
        return len(session.answer().token_ids)


def test_a_job_serves_until_it_is_stopped_and_leaves_nothing(head: Head, tmp_path: Path) -> None:
    """The checkout as working directory, the documented entrypoint, real engines."""
    listing = [RAY, "job", "list", "--address", head.jobs_address]
    refused = subprocess.run(
        listing, env=ray_environment(None), check=False, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "Authentication required" in refused.stdout + refused.stderr
    config = str(a_config_file(tmp_path))
    up = [sys.executable, "-m", "stream2llm.cli.main", "up", "--config", config]
    job = submit(head, ROOT, up)
    lines = _read_until(job, "ready after")
    assert ask(router_of(lines)) == 5
    workers = [p.owner for p in owned_processes("") if "/decode-0/" in p.owner]
    stop = [RAY, "job", "stop", "--address", head.jobs_address, JOB_ID]
    subprocess.run(stop, env=ray_environment(head.token), check=True, capture_output=True)
    rest, _ = job.communicate()
    assert "stopped\n" in rest, rest
    assert workers
    assert not still_there(workers[0])
    assert owned_processes(HEAD_MARK)  # the Ray we joined goes on


def still_there(prefix: str) -> list[psutil.Process]:
    """Processes of these owners that do not end: one of Ray's ends a moment after its actor."""
    left = []
    for found in owned_processes(prefix):
        with suppress(psutil.NoSuchProcess):
            left.append(psutil.Process(found.pid))
    _, alive = psutil.wait_procs(left, timeout=30)
    return list(alive)


def test_a_detached_cluster_is_found_again_and_ended_with_the_token(
    head: Head, tmp_path: Path
) -> None:
    """`up --detach`, then `down` from another process, with workers that have no engine.

    Its controller is killed in between, as any process may be.
    """
    kill = """
import os, signal
from stream2llm.serving.system.processes import owned_processes
cluster = Cluster.attach(config)
(controller,) = owned_processes(f"{cluster.cluster_id}/controller/")
os.kill(controller.pid, signal.SIGKILL)
status = cluster.status()
print(status["controller_restarts"], [r["incarnation"] for r in status["replicas"]])
"""
    start = """
with Cluster.start(config, detach=True, factories=factories) as cluster:
    cluster.wait_ready(120)
    cluster.detach()
"""
    find = "print('ready:', Cluster.attach(config).status()['ready'])"
    end = "cluster = Cluster.attach(config); cluster.drain(); cluster.stop(drain=False)"
    assert run(head, tmp_path, start) == ""
    assert "ready: True" in run(head, tmp_path, find)
    assert run(head, tmp_path, kill) == "1 [1, 1, 1]\n"
    assert run(head, tmp_path, end) == ""
    assert "no cluster runs" in run(head, tmp_path, find)


def test_actors_without_a_controller_are_named_and_ended(head: Head, tmp_path: Path) -> None:
    start = """
import ray
with Cluster.start(config, detach=True, factories=factories) as cluster:
    cluster.wait_ready(120)
    ray.kill(ray.get_actor("controller"))  # through Ray: it is not started again
    print(cluster.cluster_id)
    cluster.detach()
"""
    cluster_id = run(head, tmp_path, start).strip()
    again = run(head, tmp_path, start)
    assert "has actors without a controller (decode-0, prefill-0, router-0)" in again
    assert len(owned_processes(f"{cluster_id}/decode-0/")) > 1  # the refused start has ended none
    ended = run(head, tmp_path, "print(Cluster.end_orphans(config))")
    assert ended == "['decode-0', 'prefill-0', 'router-0']\n"
    assert not still_there(f"{cluster_id}/")


def test_a_cluster_ends_some_time_after_the_death_of_its_up(head: Head, tmp_path: Path) -> None:
    serve = """
tree["controller"] = {"lease_s": 5}
config = parse_config(tree, source="test")
with Cluster.start(config, factories=factories) as cluster:
    cluster.wait_ready(120)
    print(cluster.cluster_id, flush=True)
    cluster.follow(print)
"""
    driver = begin(head, tmp_path, serve)
    cluster_id = driver.stdout.readline().strip()
    driver.kill()
    driver.communicate()
    (controller,) = owned_processes(f"{cluster_id}/controller/")
    psutil.Process(controller.pid).wait(timeout=120)
    assert not still_there(f"{cluster_id}/")
    assert "no cluster runs" in run(head, tmp_path, "Cluster.attach(config)")


def test_a_worker_waits_for_room_without_a_failed_start(head: Head, tmp_path: Path) -> None:
    """Another actor holds what it needs of its node, for longer than a start may take."""
    hold = """
import ray
@ray.remote(num_cpus=0, resources={"slot": 1})
class Holder:
    def ping(self):
        return "held"
ray.init(address=config.ray.address, namespace="other", log_to_driver=False)
holder = Holder.options(name="holder", lifetime="detached").remote()
print(ray.get(holder.ping.remote()))
"""
    wait = """
import ray
place = {"labels": {"rack": "a"}, "resources": {"slot": 1}}
config = parse_config({**tree, "decode": {"placement": place, "start_timeout_s": 20}}, source="test")
def decode():
    return next(r for r in cluster.status()["replicas"] if r["name"] == "decode-0")
with Cluster.start(config, factories=factories) as cluster:
    status = cluster.status()
    while sorted(r["phase"] for r in status["replicas"]) != ["ready", "ready", "waiting_for_room"]:
        status = cluster.wait_change(status["num_events"], 120)
    try:
        while True:  # until nothing more happens
            status = cluster.wait_change(status["num_events"], 21)
    except ray.exceptions.GetTimeoutError:
        print(decode()["phase"], decode()["start_failures"], decode()["reason"])
    ray.kill(ray.get_actor("holder", namespace="other"))
    cluster.wait_ready(120, print)
    print(decode()["phase"], decode()["incarnation"])
"""
    assert run(head, tmp_path, hold) == "held\n"
    lines = run(head, tmp_path, wait).splitlines()
    assert lines[0].startswith("waiting_for_room 0 no node has room for it"), lines
    assert "0 of 1 slot free" in lines[0]
    assert "decode-0 has a place now" in lines
    assert "ready 1" in lines  # the raylet may report the holder's end behind it


def run(head: Head, model: Path, body: str) -> str:
    """What a process of its own prints; `config` and `factories` are at hand in it."""
    process = begin(head, model, body)
    out, err = process.communicate()
    return out + ("" if process.returncode == 0 else err)


def begin(head: Head, model: Path, body: str) -> subprocess.Popen[str]:
    """The process that `run` waits for."""
    (model / "config.json").write_text('{"max_position_embeddings": 1024}')
    fakes = "tests.fakes.control_plane"
    prelude = f"""
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config_file import parse_config
from stream2llm.cluster.layout import Factories
tree = {{"model": {str(model)!r}, "ray": {{"address": {head.gcs_address!r}}}, "router": {{"port": 0}}}}
config = parse_config(tree, source="test")
factories = Factories("{fakes}:FakeRouter", "{fakes}:FakeWorker", "{fakes}:FakeWorker")
"""
    environment = {**ray_environment(head.token), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", prelude + body], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
