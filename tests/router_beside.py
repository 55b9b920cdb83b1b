"""A router of a test's own before the workers of a real cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from router.server import Router
from stream2llm.cluster.cluster import Cluster
from stream2llm.serving.settings.router_spec import RouterSpec
from stream2llm.serving.settings.worker_spec import ClusterView, WorkerAddress
from tests.cluster_pool import MAX_MODEL_LEN, model_path


@asynccontextmanager
async def router_beside(cluster: Cluster, *workers: WorkerAddress) -> AsyncIterator[str]:
    """Its address. `workers` may stand before the cluster's own."""
    router = Router(
        RouterSpec(
            router_id="router-of-the-test",
            host="127.0.0.1",
            port=0,
            metrics_port=0,
            model_name="sensitive",
            model_path=str(model_path("random-llama-sensitive")),
            max_model_len=MAX_MODEL_LEN,
            handover="streamed",
            drain_timeout_s=1.0,
            cluster_token=cluster.worker_token,
        )
    )
    address = await router.start()
    try:
        router.set_view(ClusterView(1, workers))
        yield address.grpc_address
    finally:
        await router.stop()
