"""The control plane on a real Ray, with workers that have no engine."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from prefill_worker.policy import POLICIES
from stream2llm.api.errors import InvalidRequestError, UnavailableError
from stream2llm.cluster.adoption import ActorName
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import parse_config
from stream2llm.cluster.controller_start import find_controller
from stream2llm.cluster.layout import Factories
from stream2llm.serving.system import garbage
from stream2llm.serving.system.processes import owned_processes
from tests.command_lines import cli
from tests.fakes.control_plane import FakeRouterStatus

FAKES = "tests.fakes.control_plane"
FACTORIES = Factories(f"{FAKES}:FakeRouter", f"{FAKES}:FakeWorker", f"{FAKES}:FakeWorker")
READY_S = 120.0
SERVE = f"""
    cluster.wait_ready({READY_S}, print)
    print("ready", flush=True)
    cluster.follow(print)
"""


def a_config(model: Path, *, replicas: int = 1, **engine: Any) -> ClusterConfig:
    """A cluster of fakes; `engine` steers its prefill workers."""
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 1024}))
    part = {"replicas": replicas, "num_cpus": 0.1, "engine": {"num_gpu_blocks_override": 8}}
    return parse_config(
        {
            "model": str(model),
            "router": {"port": 0, "drain_timeout_s": 5},
            "prefill": {**part, "engine": {**part["engine"], **engine}},  # type: ignore[dict-item]
            "decode": part,
        },
        source="test",
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    config = a_config(tmp_path_factory.mktemp("model"), replicas=2)
    with Cluster.start(config, factories=FACTORIES) as running:
        running.wait_ready(READY_S)
        yield running
    assert owned_processes(running.cluster_id) == ()


def replica(cluster: Cluster, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(r for r in cluster.status()["replicas"] if r["name"] == name)
    return found


def test_what_the_controller_starts_with_is_never_collected_again(cluster: Cluster) -> None:
    handle = find_controller(cluster.config.ray.namespace)
    frozen, thresholds = ray.get(
        handle.__ray_call__.remote(lambda _: (gc.get_freeze_count(), gc.get_threshold()))
    )
    assert frozen > 10_000
    assert thresholds == garbage.THRESHOLDS


def wait_replaced(cluster: Cluster, name: str, before: dict[str, Any]) -> dict[str, Any]:
    """Returns the replica once a later incarnation of it is ready."""
    status = cluster.status()
    while True:
        now = next(r for r in status["replicas"] if r["name"] == name)
        if now["incarnation"] > before["incarnation"] and status["ready"]:
            return now
        status = cluster.wait_change(status["num_events"], READY_S)


def status_of(cluster: Cluster) -> Any:
    """What `stream2llm status` prints; the fake router answers no gRPC, the controller does."""
    asked = ["status", "--address", "127.0.0.1:1", "--controller", cluster.http_address]
    return cli(*asked)


def router_of(cluster: Cluster) -> FakeRouterStatus:
    """What the fake router says of itself."""
    import ray

    name = str(
        ActorName(cluster.cluster_id, "router-0", replica(cluster, "router-0")["incarnation"])
    )
    router = ray.get_actor(name, namespace=cluster.config.ray.namespace)
    status: FakeRouterStatus = ray.get(router.status.remote())
    return status


def views_of(cluster: Cluster) -> list[list[str]]:
    return router_of(cluster).views


def test_the_router_is_told_of_all_workers(cluster: Cluster) -> None:
    assert sorted(views_of(cluster)[-1]) == ["decode-0", "decode-1", "prefill-0", "prefill-1"]
    assert cluster.router_addresses == ("127.0.0.1:1",)


def test_engines_are_not_niced(cluster: Cluster) -> None:
    pids = replica(cluster, "prefill-0")["address"]["pids"]
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids} == {
        os.getpriority(os.PRIO_PROCESS, 0)
    }


@pytest.mark.parametrize(
    ("name", "which"),
    [
        pytest.param("prefill-0", 0, id="prefill-actor"),
        pytest.param("decode-1", 1, id="decode-engine"),
        # The same watch sees both roles.
        pytest.param("prefill-0", 1, id="prefill-engine", marks=pytest.mark.slow),
        pytest.param("decode-1", 0, id="decode-actor", marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_brings_a_new_worker(cluster: Cluster, name: str, which: int) -> None:
    before = replica(cluster, name)
    num_views = len(views_of(cluster))
    os.kill(before["address"]["pids"][which], signal.SIGKILL)
    after = wait_replaced(cluster, name, before)
    told = views_of(cluster)[num_views:]
    assert name not in told[0]  # at once
    assert name in told[-1]  # again
    assert after["restarts"] == before["restarts"] + 1
    assert (after["reason"], bool(after["last_error"])) == ("", True)
    shown = status_of(cluster).stdout.splitlines()
    assert [line for line in shown if line.startswith(f"{name} (before its last restart): ")]
    for pid in before["address"]["pids"]:
        assert pid not in {p.pid for p in owned_processes(cluster.cluster_id)}
    assert set(after["address"]["pids"]).isdisjoint(before["address"]["pids"])


@pytest.mark.slow
def test_what_stands_still_is_replaced_and_never_wakes_up(cluster: Cluster) -> None:
    """An engine is found by its actor, an actor and a router by the controller."""
    stopped = {"prefill-1": 1, "decode-0": 0, "router-0": 0}
    causes = {"prefill-1": "hung", "decode-0": "unresponsive", "router-0": "unresponsive"}
    before = {name: replica(cluster, name) for name in stopped}
    lost = {name: losses_of(cluster, name) for name in stopped}
    for name, which in stopped.items():
        os.kill(before[name]["address"]["pids"][which], signal.SIGSTOP)
    for name, cause in causes.items():
        after = wait_replaced(cluster, name, before[name])
        assert after["restarts"] == before[name]["restarts"] + 1
        assert after["last_cause"] == cause, after["last_error"]
        assert losses_of(cluster, name) == {**lost[name], cause: lost[name].get(cause, 0) + 1}
        # A process that is gone gets no SIGCONT.
        owned = {process.pid for process in owned_processes(cluster.cluster_id)}
        assert owned.isdisjoint(before[name]["address"]["pids"])


def losses_of(cluster: Cluster, name: str) -> dict[str, float]:
    """How often the replica was lost, by cause."""
    with urllib.request.urlopen(f"http://{cluster.http_address}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found = next(each for each in families if each.name == "stream2llm_worker_losses")
    ours = [each for each in found.samples if each.labels["worker"] == name]
    return {each.labels["cause"]: each.value for each in ours if each.name.endswith("_total")}


def test_a_policy_reaches_all_prefill_workers_and_their_successors(cluster: Cluster) -> None:
    state = cluster.set_policy("lcas")
    assert [(w.name, w.policy) for w in state.workers] == [
        ("prefill-0", "lcas"),
        ("prefill-1", "lcas"),
    ]
    before = replica(cluster, "prefill-1")
    os.kill(before["address"]["pids"][0], signal.SIGKILL)
    wait_replaced(cluster, "prefill-1", before)
    with urllib.request.urlopen(f"http://{cluster.http_address}/policy") as answer:
        shown = json.load(answer)
    assert (shown["policy"], cluster.status()["policy"]) == ("lcas", "lcas")
    assert [(w["policy"], w["error"]) for w in shown["workers"]] == [("lcas", "")] * 2
    with pytest.raises(InvalidRequestError, match=f"there are {', '.join(POLICIES)}"):
        cluster.set_policy("lifo")
    assert cluster.set_policy("fcfs").errors == ()


def test_status_shows_every_replica(cluster: Cluster) -> None:
    shown = status_of(cluster)
    names = [r["name"] for r in cluster.status()["replicas"]]
    assert all(name in shown.stdout for name in names)
    assert shown.exit_code == 4  # the fake router has no gRPC


def test_routers_know_where_the_controller_is(cluster: Cluster) -> None:
    assert router_of(cluster).controller == cluster.http_address


def test_a_killed_router_is_made_anew_and_told(cluster: Cluster) -> None:
    before = replica(cluster, "router-0")
    os.kill(before["address"]["pids"][0], signal.SIGKILL)
    wait_replaced(cluster, "router-0", before)
    assert len(views_of(cluster)[-1]) == 4


def kill_controller(cluster: Cluster) -> None:
    (controller,) = owned_processes(f"{cluster.cluster_id}/controller/")
    os.kill(controller.pid, signal.SIGKILL)


def test_a_killed_controller_comes_back_and_adopts_everything(cluster: Cluster) -> None:
    """Twice: what a successor has taken over, its own successor takes over, too."""
    assert cluster.set_policy("lcas").errors == ()
    for _ in range(2):
        before = cluster.status()
        num_views = len(views_of(cluster))
        kill_controller(cluster)
        after = cluster.status()  # waits for the successor
        assert after["controller_restarts"] == before["controller_restarts"] + 1
        same = ("name", "incarnation", "restarts", "phase", "address", "last_error")
        assert [{k: r[k] for k in same} for r in after["replicas"]] == [
            {k: r[k] for k in same} for r in before["replicas"]
        ]
        assert (after["policy"], after["http_address"]) == ("lcas", before["http_address"])
        cluster.wait_ready(READY_S)
        told = views_of(cluster)[num_views:]
        assert told
        assert all(len(view) == 4 for view in told)  # sessions go on: no worker is taken away
    assert status_of(cluster).exit_code == 4  # the controller answers, the fake router does not
    dead = replica(cluster, "decode-0")
    os.kill(dead["address"]["pids"][1], signal.SIGKILL)
    wait_replaced(cluster, "decode-0", dead)
    assert cluster.set_policy("fcfs").errors == ()


@pytest.mark.slow
def test_a_worker_that_died_while_no_controller_ran_is_replaced(cluster: Cluster) -> None:
    before = {r["name"]: r for r in cluster.status()["replicas"]}
    kill_controller(cluster)
    os.kill(before["prefill-0"]["address"]["pids"][0], signal.SIGKILL)
    wait_replaced(cluster, "prefill-0", before["prefill-0"])
    after = {r["name"]: r["incarnation"] for r in cluster.status()["replicas"]}
    expected = {name: r["incarnation"] for name, r in before.items()}
    assert after == {**expected, "prefill-0": expected["prefill-0"] + 1}


def test_a_drained_worker_is_replaced(cluster: Cluster) -> None:
    before = replica(cluster, "decode-1")
    words = ["drain", "decode-1", "--controller", cluster.http_address]
    done = cli(*words)
    assert done.exit_code == 0, done.output
    after = replica(cluster, "decode-1")
    assert after["incarnation"] == before["incarnation"] + 1
    assert (after["phase"], after["last_error"], after["last_cause"]) == (
        "ready",
        "it was drained",
        None,
    )


def test_sigterm_at_a_worker_drains_it(cluster: Cluster) -> None:
    before = replica(cluster, "prefill-1")
    os.kill(before["address"]["pids"][0], signal.SIGTERM)
    after = wait_replaced(cluster, "prefill-1", before)
    assert "drain" in after["last_error"]


@pytest.mark.slow
def test_the_only_worker_of_its_role_has_a_stand_in_while_it_is_replaced(cluster: Cluster) -> None:
    at_controller = ["--controller", cluster.http_address]
    assert cli("drain", "prefill-1", "--remove", *at_controller).exit_code == 0
    before = replica(cluster, "prefill-0")
    num_views = len(views_of(cluster))
    done = cli("rollout", "restart", "prefill-0", *at_controller)
    assert done.exit_code == 0, done.output
    assert replica(cluster, "prefill-0")["incarnation"] == before["incarnation"] + 1
    views = views_of(cluster)[num_views:]
    assert any("prefill-0-stand-in" in view for view in views)
    assert all(any(name.startswith("prefill") for name in view) for view in views)
    assert "prefill-0-stand-in" not in {r["name"] for r in cluster.status()["replicas"]}
    removed = replica(cluster, "prefill-1")
    assert cli("workers", "retry", *at_controller).exit_code == 0
    wait_replaced(cluster, "prefill-1", removed)


def test_a_second_cluster_in_the_same_process_is_refused(cluster: Cluster) -> None:
    with pytest.raises(Exception, match="already uses a Ray"):
        Cluster.start(cluster.config, factories=FACTORIES)
    assert cluster.status()["ready"]


def run_script(model: Path, body: str, **engine: Any) -> subprocess.Popen[str]:
    """A driver of its own, with `cluster` started and `config` at hand."""
    config = a_config(model, **engine)
    script = f"""
import sys
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.layout import Factories
config = ClusterConfig.model_validate_json({config.model_dump_json()!r})
factories = Factories(*{[FACTORIES.router, FACTORIES.prefill, FACTORIES.decode]!r})
with Cluster.start(config, factories=factories) as cluster:
    print(cluster.cluster_id, flush=True)
{body}
"""
    return subprocess.Popen(
        [sys.executable, "-c", script], text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, **proxies(), "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip


def proxies() -> dict[str, str]:
    """A proxy that never answers: a cluster must start and end beside it."""
    return dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:1")


@pytest.mark.slow
def test_a_failing_start_reaches_the_user_and_leaves_nothing(tmp_path: Path) -> None:
    process = run_script(tmp_path, f"    cluster.wait_ready({READY_S})", fail="no such dtype")
    out, err = process.communicate(timeout=READY_S)
    assert process.returncode != 0
    assert "cannot start prefill-0: ValueError: no such dtype" in err
    assert owned_processes(out.strip()) == ()


@pytest.mark.slow
def test_a_start_that_fails_once_is_repeated_and_a_signal_to_the_group_leaves_nothing(
    tmp_path: Path,
) -> None:
    process = run_script(tmp_path, SERVE, fail_once=str(tmp_path / "tried"))
    cluster_id, *lines = lines_until_ready(process)
    told = "\n".join(lines)
    assert "prefill-0 failed to start: RuntimeError: not this time" in told
    assert "prefill-0 starting again (2)" in told
    os.killpg(process.pid, signal.SIGTERM)  # Ray's own processes get it too
    process.communicate(timeout=READY_S)
    assert owned_processes(cluster_id) == ()


def lines_until_ready(process: subprocess.Popen[str]) -> list[str]:
    """What a SERVE script says until its cluster is ready; the first line is the cluster's id."""
    lines: list[str] = []
    while (line := process.stdout.readline()) != "ready\n":
        if not line:
            raise AssertionError(process.communicate()[1])
        lines.append(line.rstrip("\n"))
    return lines


@pytest.mark.parametrize(
    ("number", "codes"),
    # Ray turns a SystemExit inside ray.get into one with code 1. Dying of SIGTERM would be -15.
    [(signal.SIGINT, (-signal.SIGINT,)), (signal.SIGTERM, (128 + signal.SIGTERM, 1))],
)
@pytest.mark.slow
def test_a_signal_to_the_driver_leaves_nothing(
    tmp_path: Path, number: signal.Signals, codes: tuple[int, ...]
) -> None:
    process = run_script(tmp_path, SERVE)
    cluster_id = lines_until_ready(process)[0]
    assert len(owned_processes(cluster_id)) > 4
    process.send_signal(number)
    _, err = process.communicate(timeout=READY_S)
    assert process.returncode in codes, err
    assert owned_processes(cluster_id) == ()


def test_a_taken_router_port_fails_before_ray_starts(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        config = a_config(tmp_path)
        router = config.router.model_copy(update={"port": port})
        with pytest.raises(UnavailableError, match=f"port {port} on 127.0.0.1 is taken"):
            Cluster.start(config.model_copy(update={"router": router}), factories=FACTORIES)
