"""One line of Prometheus configuration finds every actor's metrics, and they say what happened."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stream2llm.client import AsyncClient, Document
from stream2llm.cluster import Cluster
from tests.polling import eventually
from tests.streams import GREEDY, Stream, collect, until_prefilled

pytestmark = [pytest.mark.integration, pytest.mark.cluster("sensitive-1x1")]
STREAM = Stream("metrics", (), {"a": 100, "b": 60, "c": 60})


def scrape(cluster: Cluster) -> Counter[str]:
    """All samples of all targets of /sd, summed over their labels."""
    with urllib.request.urlopen(f"http://{cluster.http_address}/sd") as response:
        groups = json.load(response)
    total: Counter[str] = Counter()
    for target in (target for group in groups for target in group["targets"]):
        with urllib.request.urlopen(f"http://{target}/metrics") as response:
            for family in text_string_to_metric_families(response.read().decode()):
                for sample in family.samples:
                    total[sample.name] += sample.value
                    kind = sample.labels.get("kind") or sample.labels.get("op")
                    total[f"{sample.name}/{kind}"] += sample.value
    return total


def test_every_actor_is_a_target(cluster: Cluster) -> None:
    with urllib.request.urlopen(f"http://{cluster.http_address}/sd") as response:
        groups = json.load(response)
    roles = {group["labels"]["role"] for group in groups}
    assert {"router", "prefill", "decode", "controller"} <= roles


async def test_a_session_is_counted(cluster: Cluster, client: AsyncClient) -> None:
    before = scrape(cluster)
    async with client.session(prefix=STREAM.prefix, sampling=GREEDY) as session:
        await session.update([Document(STREAM.document("a"), "a"), STREAM.document("b")])
        await until_prefilled(session, 2)
        await session.update([Document(id="a"), STREAM.document("c")])
        await until_prefilled(session, 3)
        outcome = await collect(session.seal(STREAM.suffix))
    usage = outcome.finished.usage

    async def gained() -> Counter[str]:
        now = scrape(cluster)
        now.subtract(before)
        return now

    now = await eventually(gained, lambda c: c["stream2llm_sessions_total"] == 1)
    assert now["stream2llm_time_to_first_token_seconds_count"] == 1
    assert now["stream2llm_session_ttft_seconds_count"] == 1
    assert now["stream2llm_inter_token_latency_seconds_count"] == 7
    assert now["stream2llm_prefill_tokens_total/computed"] == usage.computed_tokens
    assert now["stream2llm_prefill_tokens_total/invalidated"] == usage.invalidated_tokens > 0
    assert now["stream2llm_kv_transfers_total"] == 1
    assert now["stream2llm_kv_transfer_seconds_count"] == 1
    assert now["stream2llm_kv_transfer_bytes_total"] > 0
    assert now["stream2llm_kv_blocks"] == 0  # as many as before
    assert before["stream2llm_kv_blocks"] > 0
