"""Gathers the facts of this machine. A probe that fails is recorded, and the others go on."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import distributions, requires
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from stream2llm.api.errors import Stream2LLMError
from stream2llm.api.loopback import host_of
from stream2llm.cli.doctor.facts import Gpu, Machine, Model, Network, Nixl, Ports
from stream2llm.cli.doctor.model_files import incomplete_files, shape_of
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.exposure import NodeFiles, look_at_tls_files, names_here
from stream2llm.cluster.processor import flags_here
from stream2llm.models.cache import default_cache_dir
from stream2llm.models.store import resolve_model
from stream2llm.serving.settings.router_spec import MIB
from stream2llm.serving.system.clock import SystemClock
from stream2llm.serving.system.machine_memory import machine_memory
from stream2llm.serving.system.ports import is_listening

NIXL_TIMEOUT_S = 30.0
GPU_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 3.0
_CONNECTIONS = 16
PROXY_VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "no_proxy")
_NIXL_PROBE = """
import json
from nixl._api import nixl_agent, nixl_agent_config
config = nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
agent = nixl_agent("stream2llm-doctor", config)
print("\\n" + json.dumps(agent.get_backend_mem_types("UCX")))
"""


def machine(config: ClusterConfig, address: str, *, fast: bool) -> Machine:
    """Returns all facts; `fast` leaves out NIXL and the tokenizer, which take seconds.

    `address` is where other machines reach this one. Runs in a Ray process of each node, too.
    """
    return gather(platform.node(), platform.python_version(), _probes(config, address, fast=fast))


def gather(node: str, python: str, probes: dict[str, Callable[[], dict[str, Any]]]) -> Machine:
    """Runs each probe, which returns fields of Machine; notes those that fail."""
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name, probe in probes.items():
        try:
            found |= probe()
        except Exception as error:  # whatever it is, it is what the operator has to know
            failed[name] = f"{type(error).__name__}: {error}"
    return Machine(node, python, **found, failed=failed)


def _probes(
    config: ClusterConfig, address: str, *, fast: bool
) -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "versions": _versions,
        "processor": lambda: {"cpu_flags": flags_here()},
        "cores": _cores,
        "GPUs": lambda: {"gpus": _gpus()},
        "memory": _memory,
        "limits": _limits,
        "proxies": lambda: {"proxies": _proxies()},
        "disk": _disk,
        "NIXL": lambda: {"nixl": None if fast else _nixl()},
        "network": lambda: {"network": network()},
        "model": lambda: {"model": _model(config.model, fast=fast)},
        "TLS": lambda: {"tls": _tls(config, address)},
    }


def _versions() -> dict[str, Any]:
    names = {canonicalize_name(each.metadata["Name"]): each.version for each in distributions()}
    return {"versions": names, "requirements": tuple(requires("stream2llm") or ())}


def _cores() -> dict[str, Any]:
    return {"num_cores": len(os.sched_getaffinity(0)), "cpu_quota": _cpu_quota()}


def _cpu_quota() -> float:
    """Returns the cores of the control group's limit, of version 2 or 1; 0 without one."""
    root = Path("/sys/fs/cgroup")
    if (new := root / "cpu.max").is_file():
        quota, period = new.read_text().split()
    elif (old := root / "cpu" / "cpu.cfs_quota_us").is_file():
        quota, period = old.read_text(), (root / "cpu" / "cpu.cfs_period_us").read_text()
    else:
        return 0.0
    return 0.0 if quota.strip() in ("max", "-1") else int(quota) / int(period)


def _gpus() -> tuple[Gpu, ...]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = "--query-gpu=name,memory.total,memory.used,driver_version"
    ran = _run([command, query, "--format=csv,noheader,nounits"], GPU_TIMEOUT_S)
    if ran.returncode:
        raise RuntimeError(f"nvidia-smi: {(ran.stderr or ran.stdout).strip()}")
    return tuple(map(_gpu, ran.stdout.strip().splitlines()))


def _gpu(line: str) -> Gpu:
    name, total, used, driver = (part.strip() for part in line.split(","))
    return Gpu(name, int(total) * MIB, int(used) * MIB, driver)


def _memory() -> dict[str, Any]:
    available, total = machine_memory()
    free = shutil.disk_usage("/dev/shm").free
    return {"available_bytes": available, "total_bytes": total, "shm_free_bytes": free}


def _limits() -> dict[str, Any]:
    files, locked = (
        resource.getrlimit(which)[0] for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK)
    )
    return {"open_files": files, "locked_bytes": locked}


def _proxies() -> dict[str, str]:
    found = {name: os.environ.get(name) or os.environ.get(name.upper()) for name in PROXY_VARIABLES}
    return {name: value for name, value in found.items() if value}


def _disk() -> dict[str, Any]:
    cache = default_cache_dir()
    there = next(each for each in (cache, *cache.parents) if each.exists())
    return {"cache_dir": str(cache), "cache_free_bytes": shutil.disk_usage(there).free}


def _nixl() -> Nixl:
    """In a process of its own: UCX may abort, or hang in a device's driver."""
    try:
        ran = _run([sys.executable, "-c", _NIXL_PROBE], NIXL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Nixl(error=f"no agent after {NIXL_TIMEOUT_S:g} s")
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        return Nixl(error=lines[-1] if lines else f"it ended with code {ran.returncode}")
    return Nixl(tuple(json.loads(ran.stdout.strip().splitlines()[-1])))


def network(root: Path = Path("/sys/class")) -> Network:
    """Returns the network devices that are up, and UCX's variables."""
    up = ("up", "unknown")  # loopback and virtual devices do not know
    devices = [
        path.parent.name for path in root.glob("net/*/operstate") if path.read_text().strip() in up
    ]
    active = [
        f"{path.parts[-4]}:{path.parts[-2]}"
        for path in root.glob("infiniband/*/ports/*/state")
        if "ACTIVE" in path.read_text()
    ]
    variables = {name: value for name, value in os.environ.items() if name.startswith("UCX_")}
    return Network(tuple(sorted(devices)), tuple(sorted(active)), variables)


def ports(listeners: Mapping[str, str], timeout_s: float = CONNECT_TIMEOUT_S) -> Ports:
    """Tries to connect with each listener, a name to host:port; all at the same time."""

    def is_reached(address: str) -> bool:
        port = address.rpartition(":")[2]
        return port.isdecimal() and is_listening(host_of(address), int(port), timeout_s)

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        reached = list(pool.map(is_reached, listeners.values()))
    found = zip(listeners.items(), reached, strict=True)
    unreached = tuple(f"{name} at {address}" for (name, address), is_there in found if not is_there)
    return Ports(len(listeners), unreached)


def _run(command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=timeout_s,
    )  # fmt: skip


def _model(name: str, *, fast: bool) -> Model:
    try:
        path = resolve_model(name)
    except Stream2LLMError as error:
        return Model(name, error=error.message)
    missing, num_files = incomplete_files(path)
    has_template, tokenizer_error = (None, "") if fast else _tokenizer(path)
    return Model(
        str(path), missing, num_files, shape_of(path), has_template, tokenizer_error
    )  # fmt: skip


def _tls(config: ClusterConfig, address: str) -> NodeFiles | None:
    tls = config.security.tls
    now = datetime.fromtimestamp(SystemClock().wall_s(), UTC)
    return None if tls is None else look_at_tls_files(tls, names_here(config, address), now)


def _tokenizer(path: Path) -> tuple[bool | None, str]:
    from router.tokenizer import ModelTokenizer

    try:
        return ModelTokenizer(str(path)).has_chat_template, ""
    except Stream2LLMError as error:
        return None, error.message
