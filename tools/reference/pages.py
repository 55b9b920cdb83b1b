"""The list of pages, and where their models come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from decode_worker.fetch_metrics import FetchMetrics
from prefill_worker.metrics import PrefillMetrics
from router.metrics import RouterMetrics
from stream2llm.cli.main import FORWARDED, app, forwarded
from stream2llm.cluster.config import ClusterConfig
from stream2llm.cluster.controller_http import ControllerMetrics
from stream2llm.engine.answer_metrics import AnswerMetrics
from stream2llm.engine.worker_metrics import GrammarMetrics, TransferMetrics, WorkerGauges
from stream2llm.gateway.lanes.requests import CreateRequest
from stream2llm.gateway.metrics import GatewayMetrics
from stream2llm.gateway.requests import ChatRequest, CompletionRequest
from stream2llm.security.authority_files import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    write_cluster_files,
)
from stream2llm.security.certificates import CertificateStore
from stream2llm.security.guard import LISTENERS, AccessMetrics
from stream2llm.security.tls_files import TlsFiles
from stream2llm.security.tls_metrics import TlsMetrics
from stream2llm.serving.actor.access import Guards
from stream2llm.serving.observability.tracing import SpanCounter
from stream2llm.serving.sessions.answer_use import AnswerUses
from stream2llm.serving.settings.security_options import AuthOptions
from stream2llm.serving.settings.worker_spec import WorkerStatus
from stream2llm.serving.system.clock import SystemClock
from stream2llm.serving.system.gc_pauses import GcPauses
from stream2llm.serving.system.loop_lag import LoopLag
from tools.reference import commands, configuration, http, metrics, protos
from tools.reference.markdown import page

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"
_PROTOS = ("stream2llm/v1/inference.proto", "stream2llm/v1/worker.proto")


def _configuration() -> str:
    return page(
        "Configuration",
        "the models of the configuration",
        """
        A cluster is configured by one YAML file, which `stream2llm up --config FILE` reads once and checks as a
        whole. An unknown key or a value outside its limits is an error that names the key. Keys in the tables
        are full paths: `router.limits.max_open_sessions` is `max_open_sessions` under `limits` under `router`.
        Keys that are left out have the default. The files in `deploy/` are commented examples
        ([sizing](../sizing.md)).
        """,
        configuration.sections(ClusterConfig.model_json_schema()),
    )


def _metrics() -> str:
    return page(
        "Metrics",
        "the metrics' registries",
        """
        Every process serves Prometheus metrics over HTTP at `/metrics`; the controller lists all of them at `/sd`
        (HTTP service discovery). Times are in seconds, sizes in bytes. Workers serve vLLM's own `vllm:*` metrics
        from the same port, routers also `process_*` of the Prometheus client. A histogram `NAME` has the series
        `NAME_bucket`, `NAME_sum` and `NAME_count`. Where a label's values are listed, each is exported from the
        start, with 0; other values appear when they first occur.
        """,
        _metric_sections(),
    )


def _metric_sections() -> list[str]:
    with TemporaryDirectory() as folder:
        return list(metrics.sections(_metric_groups(Path(folder))))


def _metric_groups(folder: Path) -> list[metrics.Group]:
    router = metrics.Group("Router", "Label `model` is the served model's name.")
    RouterMetrics(router.registry, "<model>")
    LoopLag(router.registry, SystemClock())
    worker = metrics.Group("Every worker", "Gauges are read at the moment of the scrape.")
    status = WorkerStatus(
        num_sessions=0, num_kv_blocks=0, num_kv_blocks_held=0, block_size=0, pids=()
    )
    for role in ("prefill", "decode", "mixed"):
        worker.registry.register(WorkerGauges(role, lambda: status))
    GrammarMetrics("prefill", worker.registry)
    prefill = metrics.Group(
        "Prefill or mixed worker",
        "Taken from the scheduler's reports: at least every 16 engine steps, and whenever no work is left.",
    )
    PrefillMetrics(prefill.registry)
    decode = metrics.Group("Decode worker", "KV reads over NIXL, after the seal and ahead of it.")
    TransferMetrics(decode.registry)
    FetchMetrics(decode.registry)
    answers = metrics.Group(
        "Decode or mixed worker", "Answers by tenant. Their first tokens are prefill's."
    )
    answers.registry.register(AnswerMetrics(AnswerUses()))
    gateway = metrics.Group("Gateway", "Served on the port of its API, at `/metrics`.")
    GatewayMetrics(gateway.registry)
    controller = metrics.Group("Controller", "Served on the controller's HTTP port.")
    ControllerMetrics(controller.registry)
    every = metrics.Group(
        "Router, every worker, gateway and controller", "What the process itself does."
    )
    every.registry.register(GcPauses(SystemClock()))
    tls = metrics.Group("Every process with TLS", "The certificate files that it uses.")
    tls.registry.register(TlsMetrics(_certificates(folder)))
    tracing = metrics.Group(
        "Router and workers with tracing", "Only where `observability.tracing` is on."
    )
    SpanCounter(tracing.registry)
    calls = metrics.Group("Every process", "Callers that were not admitted (security.md).")
    calls.registry.register(_access_metrics(folder))
    return [
        *(router, gateway, worker, prefill, decode, answers),
        *(controller, every, tls, tracing, calls),
    ]


def _access_metrics(folder: Path) -> AccessMetrics:
    """With a file of keys, and all listeners that there may be."""
    path = folder / "keys.jsonl"
    path.touch()
    guards = Guards(AuthOptions(keys_file=path), SystemClock())
    for listener in LISTENERS:
        guards.of(listener)
    return guards.metrics


def _certificates(folder: Path) -> CertificateStore:
    """Any; with all files that there may be."""
    now = datetime.fromtimestamp(SystemClock().wall_s(), UTC)
    write_cluster_files(folder, ["localhost"], now, timedelta(days=1))
    ca = folder / CA_FILE
    return CertificateStore(TlsFiles(folder / CERTIFICATE_FILE, folder / KEY_FILE, ca, ca))


def _commands() -> str:
    return page(
        "Command line",
        "the commands",
        """
        Every command prints this text with `--help`. Exit codes: 0 done; 1 a cluster could not be started, ended
        or reached, or a bound of `--check` was missed; 2 bad usage; 3 refused or failed; 4 unavailable, the same
        command may succeed later; 130 interrupted.
        """,
        commands.sections(app, {name: partial(forwarded, name) for name in FORWARDED}),
    )


def _http() -> str:
    return page(
        "HTTP API",
        "the gateway's tables",
        """
        The parameters that each route of the [HTTP API](../http-api.md) takes. What they mean is OpenAI's
        documentation, for names that it does not have vLLM's. A parameter that is refused may have the values
        behind it, which change nothing, and null. Every other name is refused as unknown.
        """,
        http.sections(
            {
                "/v1/chat/completions": ChatRequest,
                "/v1/completions": CompletionRequest,
                "/v1/responses": CreateRequest,
            }
        ),
    )


def _public_grpc() -> str:
    return page(
        "gRPC API",
        "proto/stream2llm/v1/inference.proto",
        """
        The public API, package `stream2llm.v1`. Servers answer gRPC health checks and server reflection. The
        [Python client](python.md) speaks it; `grpcurl` and clients in other languages can as well.
        """,
        protos.sections(_files()[0]),
    )


def _internal_grpc() -> str:
    return page(
        "gRPC between parts",
        "proto/stream2llm/v1/worker.proto",
        """
        What routers and workers send to each other, for those who work on Stream2LLM. It is no public API and
        changes with every release. Types that are not on this page are in the [public API](grpc.md).
        """,
        protos.sections(_files()[1]),
    )


@cache
def _files() -> list[FileDescriptorProto]:
    found = {file.name: file for file in protos.describe(ROOT / "proto", _PROTOS)}
    return [found[name] for name in _PROTOS]


# File name in FOLDER, and the function that writes it.
PAGES: Mapping[str, Callable[[], str]] = {
    "configuration.md": _configuration,
    "metrics.md": _metrics,
    "http.md": _http,
    "cli.md": _commands,
    "grpc.md": _public_grpc,
    "grpc-internal.md": _internal_grpc,
}
