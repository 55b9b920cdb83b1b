"""Two tenants of a real cluster with the same document share no KV, at prefill or decode."""

from __future__ import annotations

import pytest

from stream2llm.api.errors import UnauthenticatedError
from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from tests.cluster_pool import ClusterPool
from tests.reference_engine import ReferenceEngine
from tests.streams import GREEDY, Stream, play

pytestmark = [pytest.mark.slow, pytest.mark.cluster("sensitive-secured")]
STREAM = Stream("tenants", (("append", ("a",)), ("append", ("b",))), {"a": 400, "b": 300})


async def test_a_document_is_found_by_its_own_tenant_alone(
    cluster: Cluster, client: AsyncClient, cluster_pool: ClusterPool, reference: ReferenceEngine
) -> None:
    """`client` is of tenant a."""
    first = await played(client, reference)
    again = await played(client, reference)
    key, tls = cluster_pool.key_for("b"), cluster_pool.tls
    async with AsyncClient(client.address, api_key=key, tls=tls) as other:
        of_other = await played(other, reference)
    assert (first, of_other) == (0, 0)
    assert again > len(STREAM.prompt) / 2
    async with AsyncClient(client.address, api_key="", tls=tls) as nobody:
        with pytest.raises(UnauthenticatedError):
            await nobody.model_info()


async def played(client: AsyncClient, reference: ReferenceEngine) -> int:
    """The number of tokens whose KV was found in the prefix cache."""
    outcome = await play(client, STREAM, handover="streamed")
    assert outcome.token_ids == reference.answer(STREAM.prompt, GREEDY.max_tokens)
    return outcome.finished.usage.reused_tokens
