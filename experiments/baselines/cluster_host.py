"""A cluster in a process of its own: `python -m experiments.baselines.cluster_host FD SPEC`.

A process can have one Ray, and clusters of two shapes take turns. It says where its router is
when all is ready, then switches policies on request, a line of JSON each, and ends its cluster
when the driver closes the socket or is killed.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from experiments.baselines.engines.messages import HostSpec
from experiments.lab_cluster import lab_cluster
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.models.catalogue import PresetName
from stream2llm.serving.system.signals import catch_signals

READY_TIMEOUT_S = 300.0
# One prefill and one decode worker, or two mixed ones.
Shape = Literal["apart", "mixed"]


@dataclass(frozen=True, slots=True)
class ClusterHostSpec:
    """What a host process starts: two workers, each with a core and an engine like `engine`'s."""

    shape: Shape
    model: PresetName
    engine: HostSpec
    cores: tuple[int, int]


def cluster_config(spec: ClusterHostSpec) -> ClusterConfig:
    """Returns the configuration of the cluster."""
    engine = spec.engine
    worker = {"env": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}}
    prefills = {"offload_pool_gib": 1}
    first, second = map(str, spec.cores)
    arguments = {
        "block_size": engine.block_size,
        "max_num_batched_tokens": engine.token_budget,
        "num_gpu_blocks_override": engine.num_kv_blocks,
    }
    sections: dict[str, dict[str, Any]] = {
        "prefill": {**worker, **prefills, "cpu_bind": first},
        "decode": {**worker, "cpu_bind": second},
    }
    if spec.shape == "mixed":
        both = {**worker, **prefills, "cpu_bind": f"{first};{second}", "replicas": 2}
        sections = {"mixed": both}
    return lab_cluster(
        "experiments.baselines",
        preset=spec.model,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        engine=arguments,
        **sections,
    )


def serve(cluster: Cluster, lines: TextIO) -> None:
    """Switches policies until the driver is gone."""
    _say(
        lines,
        {
            "router": cluster.router_addresses[0],
            "cluster_id": cluster.cluster_id,
            "log_dir": str(cluster.log_dir),
        },
    )
    for line in lines:
        _say(lines, {"errors": list(cluster.set_policy(json.loads(line)["policy"]).errors)})


def _say(lines: TextIO, message: dict[str, Any]) -> None:
    lines.write(json.dumps(message) + "\n")
    lines.flush()


def spec_of(text: str) -> ClusterHostSpec:
    """Returns what `json.dumps(asdict(spec))` came from."""
    raw = json.loads(text)
    engine = HostSpec(**{**raw["engine"], "cores": tuple(raw["engine"]["cores"])})
    first, second = raw["cores"]
    return ClusterHostSpec(raw["shape"], raw["model"], engine, (first, second))


def main(descriptor: int, spec: ClusterHostSpec) -> None:
    """Runs the cluster until the driver closes the socket."""
    with (
        socket.socket(fileno=descriptor) as connection,
        connection.makefile("rw") as lines,
        Cluster.start(cluster_config(spec)) as cluster,
    ):
        catch_signals()  # Ray has put handlers of its own in place
        cluster.wait_ready(READY_TIMEOUT_S, print)
        serve(cluster, lines)


if __name__ == "__main__":
    # Ctrl-C reaches the driver alone, which then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(int(sys.argv[1]), spec_of(sys.argv[2]))
