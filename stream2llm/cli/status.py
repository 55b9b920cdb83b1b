"""`stream2llm status`: workers, sessions and KV use, as one router sees them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.table import Table

from stream2llm.client.aio import MAX_MESSAGE_BYTES
from stream2llm.grpc_options import client_channel_options
from stream2llm.v1 import inference_pb2, inference_pb2_grpc

EXIT_UNREACHABLE = 1


def status(
    address: Annotated[
        str, typer.Option("--address", "-a", help="A router, host:port, as `stream2llm up` prints.")
    ] = "127.0.0.1:50051",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for programs instead of tables.")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for the router.")
    ] = 5.0,
) -> None:
    """Show the workers of a running cluster, its open sessions and its KV cache use.

    Asks one router over gRPC, so it works from every machine that clients use.
    """
    try:
        info = _ask(address, timeout_s)
    except grpc.RpcError as error:
        typer.echo(
            f"error: no answer from a router at {address}: {error.details()};"
            " is the cluster up (stream2llm up), and is this the address it printed?",
            err=True,
        )
        raise typer.Exit(EXIT_UNREACHABLE) from error
    if as_json:
        typer.echo(json.dumps(_as_dict(info), indent=2))
        return
    _show(info, Console())


def _ask(address: str, timeout_s: float) -> inference_pb2.GetServerInfoResponse:
    options = client_channel_options(address, MAX_MESSAGE_BYTES)
    with grpc.insecure_channel(address, options=options) as channel:
        stub = inference_pb2_grpc.StreamingInferenceServiceStub(channel)
        answer: inference_pb2.GetServerInfoResponse = stub.GetServerInfo(
            inference_pb2.GetServerInfoRequest(), timeout=timeout_s
        )
        return answer


def _as_dict(info: inference_pb2.GetServerInfoResponse) -> dict[str, Any]:
    """Plain data with every field, zeros included."""
    return {
        "version": info.version,
        "router_id": info.router_id,
        "sessions_by_phase": dict(info.sessions_by_phase),
        "workers": [
            {field.name: getattr(worker, field.name) for field in worker.DESCRIPTOR.fields}
            for worker in info.workers
        ],
    }


def _show(info: inference_pb2.GetServerInfoResponse, console: Console) -> None:
    console.print(f"{info.router_id}, Stream2LLM {info.version}")
    console.print(_workers(info))
    open_sessions = {phase: n for phase, n in sorted(info.sessions_by_phase.items()) if n}
    listing = ", ".join(f"{n} {phase}" for phase, n in open_sessions.items()) or "none"
    console.print(f"open sessions: {listing}")


def _workers(info: inference_pb2.GetServerInfoResponse) -> Table:
    table = Table("worker", "role", "state", title=None)
    for title in ("sessions", "KV blocks held", "KV use"):
        table.add_column(title, justify="right")
    table.add_column("metrics", overflow="fold")
    for worker in sorted(info.workers, key=lambda w: w.worker_id):
        use = worker.num_kv_blocks_held / worker.num_kv_blocks if worker.num_kv_blocks else 0.0
        table.add_row(
            worker.worker_id,
            worker.role,
            "ready" if worker.ready else "not ready",
            str(worker.num_sessions),
            f"{worker.num_kv_blocks_held} of {worker.num_kv_blocks}",
            f"{use:.0%}",
            worker.metrics_address,
        )
    return table
