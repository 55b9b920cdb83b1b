"""Fixtures of tests against a whole, real cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from tests.cluster_pool import KINDS, MAX_MODEL_LEN, ClusterPool, model_path, until_blocks_are_free
from tests.reference_engine import ReferenceEngine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of one kind of cluster one after the other; those that end something last."""
    order = {name: place for place, name in enumerate(KINDS)}

    def place(item: pytest.Item) -> tuple[int, int]:
        marker = item.get_closest_marker("cluster")
        if marker is None:  # has a cluster of its module, which starts once in the file's order
            return -1, 0
        return order[marker.args[0]], int("kill" in item.nodeid)

    items.sort(key=place)


@pytest.fixture(scope="session")
def cluster_pool() -> Iterator[ClusterPool]:
    """The one cluster that runs; ended at the end."""
    pool = ClusterPool()
    yield pool
    pool.stop()


@pytest.fixture
def cluster(request: pytest.FixtureRequest, cluster_pool: ClusterPool) -> Cluster:
    """The cluster that the test's `cluster` mark names, ready."""
    marker = request.node.get_closest_marker("cluster")
    assert marker is not None, "mark the test with pytest.mark.cluster(<kind>)"
    return cluster_pool.get(marker.args[0])


@pytest.fixture
async def client(cluster: Cluster, cluster_pool: ClusterPool) -> AsyncIterator[AsyncClient]:
    """A client of the cluster's router; afterwards no KV block may be held."""
    address, key = cluster.router_addresses[0], cluster_pool.key_for("a")
    async with AsyncClient(address, tls=cluster_pool.tls, api_key=key) as client:
        yield client
        await until_blocks_are_free(client.server_info, 3 * cluster.config.handover.lease_s)


@pytest.fixture(scope="session")
def smollm2_reference() -> Iterator[ReferenceEngine]:
    """One engine with the default model."""
    with ReferenceEngine(model_path("smollm2-135m-instruct"), MAX_MODEL_LEN) as engine:
        yield engine
