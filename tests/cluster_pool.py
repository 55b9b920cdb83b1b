"""Real clusters for tests: one at a time, started when first asked for.

Engines take 15-50 s to start on two cores, so all tests of one kind of cluster
share it; `tests/integration/cluster/conftest.py` orders them by kind.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stream2llm.api.call_metadata import CallsWith, bearer
from stream2llm.api.handover import HandoverMode
from stream2llm.api.tls import ClientTls
from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.config_file import parse_config
from stream2llm.models.store import ensure_random_llama, fetch_default_model
from stream2llm.security.principal import Scope
from stream2llm.serving.mux.channel import MuxChannel
from tests.credentials import Keys
from tests.polling import eventually
from tests.tls_files import Authority
from tools.traces.collector import Collector, collecting

MAX_MODEL_LEN = 4096
START_TIMEOUT_S = 420
# In Triton's interpreter, where model runner V2 runs without a GPU, a step takes that much longer,
# and a reader of KV comes that much later.
SLOWNESS = 6 if os.environ.get("TRITON_INTERPRET") == "1" else 1


@dataclass(frozen=True, slots=True)
class Kind:
    """What a cluster under test is made of."""

    model: str = "random-llama-sensitive"
    prefill: int = 1
    decode: int = 1
    # Instead of both.
    mixed: int = 0
    max_model_len: int = MAX_MODEL_LEN
    # KV blocks of 32 tokens of each prefill engine; the usual number is far above what tests need.
    prefill_blocks: int = 400
    max_open_sessions: int = 64
    # No test waits for it, and a slow machine must not run into it.
    input_idle_timeout_s: float = 300
    preemption: str = "cost"
    offload_pool_gib: float = 1.0
    # None leaves it to us: one process for EngineCore and the model.
    executor: str | None = None
    # Processes that the model of a prefill worker is split over.
    prefill_ranks: int = 1
    handover: HandoverMode = "streamed"
    # Short where tests wait for leases to end. Elsewhere a machine that stands still for that
    # long would fail them, and a release that is missing would be made good by the lease.
    lease_s: int = 10
    # Seconds of an engine and, at least 15 s, of any process. Tests stop processes for longer than a lease,
    # and go on with them.
    hung_after_s: float = 60
    # UCX's transports; None leaves them to it. Shared memory is read without the other
    # side's help, over TCP a read stands still while the other side does.
    ucx_tls: str | None = None
    # Certificates for its parts, and others for its clients; and who calls needs an API key.
    is_secured: bool = False
    # Sends the traces of sessions whose client asks for one to a collector of the pool.
    is_traced: bool = False
    # Serves OpenAI's API, too.
    has_gateway: bool = False


# KV for about 2,000 tokens.
_TIGHT = Kind(max_model_len=2048, prefill_blocks=65, lease_s=100)
KINDS = {
    # What streams its hand-over here says so; on all others it is the default.
    # More than a hundred sessions are open on it at once.
    "sensitive-1x1": Kind(handover="at_seal", max_open_sessions=160, is_traced=True),
    # The model in a process of its own, as with several ranks.
    "sensitive-ranks": Kind(executor="mp", hung_after_s=30),
    "sensitive-2-to-1": Kind(prefill_ranks=2, hung_after_s=30),
    "sensitive-tcp": Kind(ucx_tls="tcp"),
    # Over TLS and with API keys.
    "sensitive-secured": Kind(is_secured=True),
    "sensitive-2x2": Kind(prefill=2, decode=2, hung_after_s=10),
    # For sessions by the hundred.
    "sensitive-tight": replace(_TIGHT, max_open_sessions=256),
    # Room on the host for about as much as there is on the engine.
    "sensitive-swap": replace(_TIGHT, preemption="swap", offload_pool_gib=0.016),
    # Memory for one session of full length, so that answers lose KV and get it back.
    "mixed-1": Kind(mixed=1, prefill_blocks=130),
    "smollm2-1x1": Kind(model="smollm2-135m-instruct", has_gateway=True),
}


def config_of(kind: Kind, **changes: Any) -> ClusterConfig:
    """A cluster's configuration; `changes` are sections that replace ours."""
    engine = {
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": 32,
        "max_model_len": kind.max_model_len,
        "max_num_batched_tokens": 512,
        "max_num_seqs": 32,
        "distributed_executor_backend": kind.executor,
    }
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if kind.ucx_tls is not None:
        env["UCX_TLS"] = kind.ucx_tls
    raw: dict[str, Any] = {
        "model": kind.model,
        "router": {
            "port": 0,
            # Sessions wait for a worker's successor as long as one may take to start; tests take
            # one worker of each role from a session.
            "recovery": {"max_wait_s": START_TIMEOUT_S, "max_engine_deaths": 3},
            "limits": {
                "max_open_sessions": kind.max_open_sessions,
                "max_session_tokens": 60_000,
                "max_message_bytes": 1024 * 1024,
                "input_idle_timeout_s": kind.input_idle_timeout_s,
            },
        },
        "prefill": {
            "replicas": kind.prefill,
            "preemption": kind.preemption,
            "offload_pool_gib": kind.offload_pool_gib,
            "hung_after_s": kind.hung_after_s,
            "cpu_bind": _cores(kind.prefill_ranks),
            "engine": {
                **engine,
                "num_gpu_blocks_override": kind.prefill_blocks,
                "tensor_parallel_size": kind.prefill_ranks,
            },
            "env": env,
        },
        "decode": {
            "replicas": kind.decode,
            "hung_after_s": kind.hung_after_s,
            "engine": engine,
            "env": env,
        },
        "gateway": {"port": 0} if kind.has_gateway else None,
        "handover": {"mode": kind.handover, "lease_s": SLOWNESS * kind.lease_s},
        "controller": {"http_port": 0, "unresponsive_after_s": max(15, kind.hung_after_s)},
        **changes,
    }
    if kind.mixed:
        raw["mixed"] = {**raw.pop("prefill"), "replicas": kind.mixed}
        del raw["decode"]
    return parse_config(raw, source="the test")


def _cores(num_ranks: int) -> str:
    """A core for each rank, where vLLM's own choice would be one for all."""
    cores = sorted(os.sched_getaffinity(0))
    return "auto" if num_ranks == 1 else "|".join(map(str, cores[:num_ranks]))


def model_path(name: str) -> Path:
    """The model's directory; makes or fetches the model where it is missing."""
    if name == "random-llama-sensitive":
        return ensure_random_llama("sensitive")
    return fetch_default_model()


class ClusterPool:
    """Holds the one cluster that runs."""

    keys: Keys

    def __init__(self) -> None:
        self._name = ""
        self._cluster: Cluster | None = None
        # A client's TLS, for a cluster that is secured.
        self.tls: ClientTls | None = None
        # That of a traced cluster.
        self.collector = Collector()
        self._opened = ExitStack()

    def get(self, name: str) -> Cluster:
        """A ready cluster of that kind; ends the one of another kind."""
        if name != self._name:
            self.stop()
            kind = KINDS[name]
            model_path(kind.model)
            changes = self._security() if kind.is_secured else {}
            changes |= self._traced() if kind.is_traced else {}
            self._cluster = Cluster.start(config_of(kind, **changes))
            self._name = name
        self._cluster.wait_ready(START_TIMEOUT_S)
        return self._cluster

    def _traced(self) -> dict[str, Any]:
        self.collector, endpoint = self._opened.enter_context(collecting())
        return {"observability": {"tracing": {"otlp_endpoint": endpoint, "sample_ratio": 0}}}

    def key_for(self, tenant: str) -> str:
        """A key for the cluster that runs; none where none is needed."""
        return "" if self.tls is None else self.keys.create(tenant, *Scope)

    def _security(self) -> dict[str, Any]:
        folder = Path(self._opened.enter_context(TemporaryDirectory()))
        clients = Authority()
        self.keys = Keys(folder)
        security = Authority().security(folder / "cluster", clients)
        self.tls = clients.client(folder / "client", security.tls.ca)
        auth = {"keys_file": self.keys.path}
        return {"security": {**security.model_dump(), "auth": auth}}

    def stop(self) -> None:
        """Ends the cluster, if one runs."""
        if self._cluster is not None:
            self._cluster.stop()
        self._opened.close()
        self._cluster, self._name, self.tls = None, "", None


def worker_calls(cluster: Cluster, channel: Any) -> CallsWith:
    """What stubs for calls to a worker are made from: they carry the cluster's token."""
    return CallsWith(channel, lambda: bearer(cluster.worker_token))


def session_calls(cluster: Cluster, channel: Any) -> MuxChannel:
    """The same for the calls of sessions, which share one stream."""
    return MuxChannel(
        worker_calls(cluster, channel), cluster.config.router.limits.max_message_bytes
    )


async def num_blocks_held(client: AsyncClient, role: str) -> int:
    """KV blocks that one role's workers hold."""
    info = await client.server_info()
    return sum(worker.num_kv_blocks_held for worker in info.workers if worker.role == role)


async def until_blocks_are_free(server_info: Any, timeout_s: float = 30.0) -> None:
    """Returns when no worker holds a KV block; fails after `timeout_s`."""

    async def held() -> dict[str, int]:
        info = await server_info()
        return {w.worker_id: w.num_kv_blocks_held for w in info.workers if w.num_kv_blocks_held}

    await eventually(held, lambda now: not now, timeout_s)
