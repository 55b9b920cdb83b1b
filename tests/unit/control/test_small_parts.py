"""Processes, logs, metrics and service discovery of the control plane."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from stream2llm.api.errors import UnavailableError
from stream2llm.cluster import supervision as sv
from stream2llm.cluster.controller_http import ControllerMetrics
from stream2llm.serving.actor.loss import Cause, Loss
from stream2llm.serving.actor.root_cause import describe_failure
from stream2llm.serving.http.metrics_http import MetricsServer
from stream2llm.serving.observability import logs
from stream2llm.serving.settings.launch import RouterStarted
from stream2llm.serving.system.ports import is_port_free, pick_port
from stream2llm.serving.system.processes import (
    kill_owned,
    mark_environment,
    owned_processes,
    owner_mark,
    signal_owned,
)
from tests.fakes.controller import a_controller, controller_http

LOSSES = "stream2llm_worker_losses_total"

# Says that it runs, then waits for ever; so does its child.
_PARENT = """
import subprocess, sys, threading
code = "print('up', flush=True); import threading; threading.Event().wait()"
subprocess.Popen([sys.executable, "-c", code])
threading.Event().wait()
"""


def test_only_processes_with_the_mark_are_killed_children_included() -> None:
    mark, other = (owner_mark(f"test{os.getpid()}", "w-0", n) for n in (1, 11))
    mine, theirs = (_start(m) for m in (mark, other))
    assert len(owned_processes(mark)) == 2
    assert len(kill_owned(mark)) == 2
    assert owned_processes(mark) == ()
    assert theirs.poll() is None
    kill_owned(other)
    for process in (mine, theirs):
        process.communicate()


def test_a_signal_meets_the_process_that_was_found_or_none() -> None:
    mark = owner_mark(f"test{os.getpid()}", "w-1", 1)
    process = _start(mark)
    child = next(each for each in owned_processes(mark) if each.pid != process.pid)
    stranger = replace(child, owner="another's")  # the number is another process's now
    assert not signal_owned(stranger, signal.SIGKILL)
    assert signal_owned(child, signal.SIGKILL)
    kill_owned(mark)
    process.communicate()
    assert not signal_owned(child, signal.SIGCONT)


def _start(mark: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **mark_environment(mark)}
    process = subprocess.Popen(
        [sys.executable, "-c", _PARENT], env=environment, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def test_the_metrics_server_serves_its_registry_and_ends() -> None:
    registry = CollectorRegistry()
    Counter("a", "b", registry=registry).inc()
    with MetricsServer("127.0.0.1", 0, registry) as server:
        assert "a_total 1.0" in _get(f"http://{server.address}/metrics")
        port = int(server.address.rpartition(":")[2])
    assert is_port_free("127.0.0.1", port)


def test_a_taken_metrics_port_is_named() -> None:
    with MetricsServer("127.0.0.1", 0, CollectorRegistry()) as server:
        host, _, port = server.address.rpartition(":")
        with pytest.raises(UnavailableError, match=server.address):
            MetricsServer(host, int(port), CollectorRegistry())


def test_different_owners_pick_different_ports() -> None:
    assert len({pick_port("127.0.0.1", f"owner-{n}") for n in range(8)}) == 8


ENGINE_LOG = """\
(EngineCore pid=7) ERROR 11-22 06:01:12 [core.py:900] EngineCore failed to start.
(EngineCore pid=7) ERROR 11-22 06:01:12 [core.py:900] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-22 06:01:12 [core.py:900] ValueError: No available memory for blocks
(EngineCore pid=7) RuntimeError: Worker failed. See stack trace for root cause.
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_root_cause_comes_from_the_engine_process() -> None:
    error = RuntimeError("Engine core initialization failed. See root cause above.")
    reason, permanent = describe_failure(error, ENGINE_LOG)
    assert reason.startswith("ValueError: No available memory for blocks")
    assert permanent


def test_a_cost_profile_that_cannot_be_used_is_not_tried_again() -> None:
    log = "(EngineCore pid=7) cost_profiles.load.ProfileError: here.json: cannot be read"
    error = RuntimeError("Engine core initialization failed. See root cause above.")
    reason, permanent = describe_failure(error, log)
    assert reason.startswith("ProfileError: here.json: cannot be read")
    assert permanent


def test_the_root_cause_is_found_in_a_trace_of_our_own_log() -> None:
    try:
        raise OSError("Address already in use")
    except OSError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "died", (), sys.exc_info())
    log = logs.TextFormatter().format(record)
    error = RuntimeError("Engine core initialization failed. See root cause above.")
    for prefix in ("", "(EngineCore pid=7) "):
        lines = "\n".join(prefix + line for line in log.splitlines())
        assert describe_failure(error, lines)[0].startswith("OSError: Address already in use")


def test_an_error_that_explains_itself_is_not_looked_up_in_the_log() -> None:
    assert describe_failure(ValueError("no"), ENGINE_LOG) == ("ValueError: no", True)


def test_an_unexplained_failure_may_be_tried_again() -> None:
    assert describe_failure(OSError("busy"), "nothing here") == ("OSError: busy", False)


async def test_prometheus_finds_every_process_and_the_controller() -> None:
    router = RouterStarted("router-0", "router", "h:1", "h:2", ())
    metrics = ControllerMetrics(CollectorRegistry())
    metrics.record(sv.new_fleet({"router-0": "router"}))
    of_router = {"registry": metrics.registry, "targets": lambda: [router]}
    async with a_controller(lambda: {"ready": False}, **of_router) as address:
        groups: list[dict[str, Any]] = json.loads(await _fetch(f"http://{address}/sd"))
        exposed = await _fetch(f"http://{address}/metrics")
    assert groups == [
        {"targets": ["h:2"], "labels": {"role": "router", "worker": "router-0", "node": "h"}},
        {
            "targets": [address],
            "labels": {"role": "controller", "worker": "controller", "node": "127.0.0.1"},
        },
    ]
    assert 'stream2llm_worker_up{role="router",worker="router-0"} 0.0' in exposed


def lost(fleet: sv.Fleet, cause: Cause) -> sv.Fleet:
    return sv.died(fleet, "decode-0", Loss(cause, "gone"))


def test_each_loss_is_counted_once_by_its_cause_and_a_drain_is_none() -> None:
    metrics = ControllerMetrics(CollectorRegistry())
    fleet = sv.new_fleet({"decode-0": "decode"})
    fleet = sv.failed(sv.begun(fleet, sv.Create("decode-0")), "decode-0", "no memory")
    metrics.record(fleet)
    for end in (Cause.DIED, Cause.HUNG, Cause.UNRESPONSIVE, None):
        # A failed start before it does not make it a failed start.
        fleet = sv.started(sv.begun(fleet, sv.Create("decode-0")), "decode-0")
        fleet = sv.drained(fleet, "decode-0") if end is None else lost(fleet, end)
        metrics.record(fleet)
        metrics.record(fleet)  # as after any other change
    for cause in Cause:
        labels = {"worker": "decode-0", "role": "decode", "cause": cause}
        assert metrics.registry.get_sample_value(LOSSES, labels) == 1.0


def test_a_replica_that_was_given_up_shows_it_until_it_is_tried_again() -> None:
    metrics = ControllerMetrics(CollectorRegistry())

    def shown(fleet: sv.Fleet) -> float | None:
        metrics.record(fleet)
        labels = {"worker": "decode-0", "role": "decode"}
        return metrics.registry.get_sample_value("stream2llm_worker_given_up", labels)

    fleet = sv.begun(sv.new_fleet({"decode-0": "decode"}), sv.Create("decode-0"))
    assert shown(fleet) == 0.0
    fleet = sv.failed(fleet, "decode-0", "no such model", permanent=True)
    fleet = sv.cleaned(fleet, "decode-0", now_s=0.0, max_start_failures=3)
    assert [r.name for r in sv.given_up(fleet)] == ["decode-0"]
    assert shown(fleet) == 1.0
    assert shown(sv.retried(fleet, "decode-0")) == 0.0
    assert shown({}) is None


async def test_a_taken_http_port_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        http = controller_http()
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}"):
            await http.start("127.0.0.1", port)


async def _fetch(url: str) -> str:
    return await asyncio.to_thread(_get, url)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
    return body.decode()
