"""Starts a Ray of our own, or joins a running one."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import ray
from ray._private import ray_constants, services

from stream2llm.api.errors import UnavailableError
from stream2llm.cluster import ray_auth, ray_sessions
from stream2llm.cluster.adoption import ActorName
from stream2llm.cluster.config import ClusterConfig, RayConfig
from stream2llm.cluster.ray_sweep import sweep
from stream2llm.serving.system.ports import is_listening
from stream2llm.serving.system.processes import kill_owned, mark_environment

_log = logging.getLogger(__name__)

# Where Ray's job supervisor reads it: the environment of `ray start`, or the job's own.
JOB_STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
# A job that is stopped is killed 3 s later by default; what `up` in it takes to stop beyond the
# drain of its routers.
JOB_STOP_MARGIN_S = 60
# We put no objects into Ray's store; this is its minimum.
OBJECT_STORE_BYTES = 80 * 1024 * 1024
# Calls of actors are answered without the GCS, but not without the raylet.
RAYLET = (ray_constants.PROCESS_TYPE_RAYLET,)
NEEDED = (ray_constants.PROCESS_TYPE_GCS_SERVER, *RAYLET)
EXIT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
START_ATTEMPTS = 3
# Ray waits 30 to 60 s for its own processes, which need longer on a busy machine. Ray also
# gives workers niceness 15: beside any other busy process on its core an engine would get
# a thirtieth of it. (deploy/ray/ray.env has the same for a Ray that is joined.)
BUSY_MACHINE_SETTINGS = {
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_worker_niceness": "0",
}
_RAY_ENVIRONMENT = {
    **BUSY_MACHINE_SETTINGS,
    # See `_on_loopback`: for the processes of Ray that join it again, such as its job agent.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def connect(config: ClusterConfig, cluster_id: str, mark: str) -> str:
    """Starts or joins Ray; returns the directory of its logs."""
    settings = config.ray
    try:
        _require_listener(settings.address)
        with _sigterm_kept():
            return (
                _join(settings) if settings.address != "local" else _own(config, cluster_id, mark)
            )
    except UnavailableError:
        raise
    except Exception as error:  # Ray raises various types, ConnectionError and Exception too
        what = (
            "start" if settings.address == "local" else f"join (ray.address: {settings.address}) a"
        )
        raise UnavailableError(
            f"cannot {what} Ray: {first_line(error)}", reason="RAY_UNAVAILABLE"
        ) from error


def first_line(error: BaseException) -> str:
    """Returns the message of a Ray error without its pages of advice."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _require_listener(address: str) -> None:
    """Fails at once where nothing listens; Ray itself would try for minutes.

    A Ray of our own listens on loopback alone. Ray finds it by "auto", but looks for it, as for
    any loopback address, at the node's outward one.
    """
    if address == "local" or "://" in address:
        return
    found = services.canonicalize_bootstrap_address_or_die(address)
    host, _, port = found.rpartition(":")
    if not is_listening(host.strip("[]"), int(port), CONNECT_TIMEOUT_S):
        where = address if address == found else f"{address}, which is {found} for Ray"
        raise UnavailableError(
            f"cannot join a Ray: nothing listens on {where} (ray.address, --address); a cluster"
            " with a Ray of its own ends where `stream2llm up` runs, by Ctrl-C or SIGTERM",
            reason="RAY_UNAVAILABLE",
        )


def _common(settings: RayConfig) -> dict[str, Any]:
    return {
        "namespace": settings.namespace,
        "log_to_driver": False,
        "logging_level": logging.WARNING,
    }


def _join(settings: RayConfig) -> str:
    """Joins with the mode and the token of the environment, like Ray's own commands."""
    if "auth_mode" in settings.model_fields_set:
        os.environ.setdefault(ray_auth.MODE_VARIABLE, settings.auth_mode)
    ray_auth.read_again()
    context = ray.init(address=settings.address, **_common(settings))
    return f"{context.address_info['session_dir']}/logs"


def _own(config: ClusterConfig, cluster_id: str, mark: str) -> str:
    token = ray_auth.token_file(cluster_id)
    if config.ray.auth_mode == "token":
        ray_auth.write_token(token)
    authentication = ray_auth.own_environment(config.ray.auth_mode, token)
    with (
        _environment(
            {
                **mark_environment(mark),
                **environment_of_jobs(config),
                **_RAY_ENVIRONMENT,
                **authentication,
            }
        ),
        _on_loopback(),
    ):
        ray_auth.read_again()
        return _start_own(config, mark)


def environment_of_jobs(config: ClusterConfig) -> dict[str, str]:
    """Leaves a job that is stopped the time to drain, unless the operator has set one."""
    wait_s = math.ceil(config.router.drain_timeout_s) + JOB_STOP_MARGIN_S
    return {JOB_STOP_VARIABLE: os.environ.get(JOB_STOP_VARIABLE, str(wait_s))}


def _start_own(config: ClusterConfig, mark: str) -> str:
    """Starts Ray; again when its own start timed out (30 s, fixed in its code)."""
    root = ray_auth.private_directory() / "ray"
    ray_sessions.prune(root)
    for attempts_left in reversed(range(START_ATTEMPTS)):
        try:
            context = ray.init(
                address="local",
                num_cpus=_logical_cpus(config),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=config.ray.include_dashboard,
                _temp_dir=str(root),
                **_common(config.ray),
            )
            return f"{context.address_info['session_dir']}/logs"
        except Exception as error:
            ray.shutdown()
            kill_owned(mark)
            if not attempts_left:
                raise
            _log.warning("ray_did_not_start error=%s action=again", error)
    raise AssertionError("unreachable")


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Makes a Ray that is started inside listen on the loopback address only.

    Every process of Ray listens on its node's address, and on all interfaces when that is
    not loopback. `ray.init` replaces a given loopback address by that of the outward
    route, unless it regards this machine as one on which Ray runs no clusters (its
    default on macOS and Windows). The environment variable for that is read when Ray is
    imported, which has already happened here.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def disconnect(cluster_id: str = "") -> None:
    """Ends the Ray that was started for this cluster, or leaves the joined one.

    Ray kills its processes without waiting for them, which would leave zombies while this
    process lives.
    """
    processes = _processes()
    ray.shutdown()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=EXIT_S)
    ray_auth.read_again()  # nothing here may use the token from now on
    if cluster_id:
        ray_auth.token_file(cluster_id).unlink(missing_ok=True)


def is_whole() -> bool:
    """Whether all processes that ray.init started here are still running."""
    return all(process.poll() is None for process in _processes())


def lost_process(names: Collection[str] = NEEDED) -> str | None:
    """Returns the name of one that `ray.init` started here and that has ended, of those that Ray
    cannot go on without."""
    ended = (name for name in names for p in _processes(name) if p.poll() is not None)
    return next(ended, None)


def pause(seconds: float) -> None:
    """Waits; a signal's handler may end it with an exception."""
    threading.Event().wait(seconds)


def _processes(name: str | None = None) -> list[subprocess.Popen[bytes]]:
    # Private, but pinned: no public function lists the processes that ray.init started.
    node = ray._private.worker._global_node
    if node is None:
        return []
    by_name = node.all_processes
    infos = [i for key, each in by_name.items() for i in each if name in (None, key)]
    return [info.process for info in infos]


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Restores Python's SIGTERM handling, which ray.init replaces by a native handler.

    That one ends the process without any clean-up. Without a handler of the caller's,
    SIGTERM now raises SystemExit, so that `with` blocks and atexit run.
    """
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before if callable(before) else _exit_on_sigterm)


def _exit_on_sigterm(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _logical_cpus(config: ClusterConfig) -> int:
    """Returns enough logical CPUs for all workers, even on a machine with fewer cores."""
    needed = sum(part.replicas * part.num_cpus for _, part in config.worker_sections)
    return max(len(os.sched_getaffinity(0)), int(needed + 0.999))


@contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Sets variables (None: removes them) for the processes that are started inside."""
    before = {key: os.environ.get(key) for key in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for key, value in variables.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def actors_of(namespace: str) -> list[ActorName]:
    """Returns the living routers and workers in a namespace, of whatever cluster."""
    named = ray.util.list_named_actors(all_namespaces=True)
    ours = (ActorName.parse(each["name"]) for each in named if each["namespace"] == namespace)
    return [name for name in ours if name is not None]


def kill_actors_of(namespace: str, cluster_id: str) -> None:
    """Kills the routers and workers of one cluster, and their processes on all nodes."""
    for name in actors_of(namespace):
        if name.cluster_id == cluster_id:
            with suppress(ValueError):  # it has died since
                ray.kill(ray.get_actor(str(name), namespace=namespace))
    sweep(f"{cluster_id}/")
