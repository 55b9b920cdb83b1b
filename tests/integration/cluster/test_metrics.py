"""One line of Prometheus configuration finds every actor's metrics, and they say what happened."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from stream2llm.client import AsyncClient, Document
from stream2llm.cluster.cluster import Cluster
from tests.polling import eventually
from tests.scrape import scrape
from tests.streams import GREEDY, Stream, collect, until_prefilled

pytestmark = pytest.mark.cluster("sensitive-1x1")
STREAM = Stream("metrics", (), {"a": 100, "b": 60, "c": 60})


def gained_since(cluster: Cluster, before: Counter[str]) -> Callable[[], Awaitable[Counter[str]]]:
    """Reads what has been added since `before`."""

    async def gained() -> Counter[str]:
        now = scrape(cluster)
        now.subtract(before)
        return now

    return gained


def is_counted(sessions: int) -> Callable[[Counter[str]], bool]:
    """Whether so many sessions have ended, and the scheduler has reported all they cost."""

    def check(gained: Counter[str]) -> bool:
        router, prefill = "stream2llm_input_tokens_prefilled_total", "stream2llm_prefill_tokens"
        is_told = gained[router] == gained[f"{prefill}_total/computed"]
        return gained["stream2llm_sessions_total"] == sessions and is_told

    return check


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

    now = await eventually(gained_since(cluster, before), is_counted(sessions=1))
    assert now["stream2llm_time_to_first_token_seconds_count"] == 1
    assert now["stream2llm_session_ttft_seconds_count"] == 1
    assert now["stream2llm_inter_token_latency_seconds_count"] == 7
    assert now["stream2llm_prefill_tokens_total/computed"] == usage.computed_tokens
    assert now["stream2llm_prefill_tokens_total/invalidated"] == usage.invalidated_tokens > 0
    assert now["stream2llm_prefill_tokens_total/reused_within_session"] > 0  # the document "a"
    assert now["stream2llm_scheduler_decision_seconds_count/srpf"] > 0
    assert now["stream2llm_scheduler_decision_seconds_count/mcps"] == 0
    assert now["stream2llm_preemptions_total"] == 0
    assert now["stream2llm_kv_transfers_total"] == 1
    assert now["stream2llm_kv_transfer_seconds_count"] == 1
    assert now["stream2llm_kv_transfer_bytes_total"] > 0
    assert now["stream2llm_kv_blocks"] == 0  # as many as before
    assert before["stream2llm_kv_blocks"] > 0


async def test_what_a_cancelled_session_cost_is_counted(
    cluster: Cluster, client: AsyncClient
) -> None:
    before = scrape(cluster)
    stream = Stream("cancelled", (), {"a": 300})
    async with client.session(prefix=stream.prefix, sampling=GREEDY) as session:
        await session.append(stream.document("a"))
        progress = await until_prefilled(session, 2)
    now = await eventually(gained_since(cluster, before), is_counted(sessions=1))
    computed = now["stream2llm_prefill_tokens_total/computed"]
    assert computed == progress.computed_tokens == 7 + 300 - 1  # the last one is held back


async def test_the_sessions_and_the_policy_of_a_prefill_worker_are_shown(
    cluster: Cluster, client: AsyncClient
) -> None:
    stream = Stream("idle", (), {"a": 50})

    async def now() -> Counter[str]:
        return scrape(cluster)

    async with client.session(prefix=stream.prefix, sampling=GREEDY) as session:
        await session.append(stream.document("a"))
        await until_prefilled(session, 2)
        shown = await eventually(now, lambda c: c["stream2llm_prefill_sessions/idle"] == 1)
    assert shown["stream2llm_prefill_sessions/with_work"] == 0
    assert shown["stream2llm_scheduler_policy_info/srpf"] == 1
    assert shown["stream2llm_scheduler_policy_info"] == 1  # and no other
    await eventually(now, lambda c: c["stream2llm_prefill_sessions/idle"] == 0)
