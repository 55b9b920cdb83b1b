"""The values that probes gather and checks judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cost_profiles.roofline import TransformerShape
from stream2llm.cluster.exposure import NodeFiles


class Level(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    # What was looked at, in a word or two.
    what: str
    text: str
    # What to do; "" where nothing needs to be done.
    advice: str = ""
    # The node it is about; "" for the whole.
    node: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as nvidia-smi reports it."""

    name: str
    total_bytes: int
    used_bytes: int
    driver: str


@dataclass(frozen=True, slots=True)
class Nixl:
    """The result of creating a NIXL agent in a process of its own."""

    # Kinds of memory that its UCX backend moves, such as DRAM_SEG and VRAM_SEG.
    memory_kinds: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """What UCX may move KV over, and what it is configured to."""

    # The kernel's network devices that are up, such as lo and eth0.
    devices: tuple[str, ...] = ()
    # Active ports of RDMA devices, as UCX names them, such as mlx5_0:1.
    rdma: tuple[str, ...] = ()
    # UCX's variables in the environment of the node.
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ports:
    """A try to connect with what a running cluster says that it listens on."""

    num_tried: int
    # Who listens, and where, of those that accepted no connection.
    unreached: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """A model's directory."""

    path: str
    # Weight files that its index names and that are not there, or shorter than they say.
    incomplete: tuple[str, ...] = ()
    num_weight_files: int = 0
    shape: TransformerShape | None = None
    # None: it was not loaded.
    has_chat_template: bool | None = None
    # Why the tokenizer does not load.
    tokenizer_error: str = ""
    # Why there is no such model.
    error: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine; None where the probe failed, which `failed` says."""

    node: str
    python: str
    # By distribution; absent ones are absent.
    versions: Mapping[str, str] | None = None
    # This package's requirements, with the extras' markers.
    requirements: tuple[str, ...] | None = None
    cpu_flags: frozenset[str] | None = None
    # Cores that the process may use, and the control group's limit in cores (0: none).
    num_cores: int | None = None
    cpu_quota: float | None = None
    gpus: tuple[Gpu, ...] | None = None
    available_bytes: int | None = None
    total_bytes: int | None = None
    shm_free_bytes: int | None = None
    # Soft limits; -1: unlimited.
    open_files: int | None = None
    locked_bytes: int | None = None
    proxies: Mapping[str, str] | None = None
    cache_dir: str | None = None
    cache_free_bytes: int | None = None
    # None also where it was left out.
    nixl: Nixl | None = None
    network: Network | None = None
    # None where no cluster runs.
    ports: Ports | None = None
    model: Model | None = None
    # None without TLS.
    tls: NodeFiles | None = None
    # Probe to the error that it ended with.
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """By how much another clock is ahead of ours."""

    who: str
    offset_s: float
    uncertainty_s: float


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster that runs, as far as it was found."""

    controller: str
    # The controller's /status; None: no answer.
    status: Mapping[str, Any] | None = None
    # Why there is none; "" where none was looked for by name.
    problem: str = ""
    # What to do about it; "" where the problem says so.
    advice: str = ""
    offsets: tuple[ClockOffset, ...] = ()
    # A controller listens there, even if it gives no status.
    is_there: bool = False
