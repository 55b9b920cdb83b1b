"""The demo itself: documents, a cluster, three answers, a crowd, and curl. `__main__.py` is its command line."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from pydoc_data.topics import topics

from examples.command import ASK_TIMEOUT_S, own_cluster
from examples.demo.crowd import LONG_EVERY, ask_at_once, contexts
from examples.demo.documents import NOISE_TOPICS, QUESTION, TOPICS, Way, arrivals_of, documents_from
from examples.demo.over_http import again, ask_over_http
from examples.demo.run import Result, Run
from examples.demo.view import View
from stream2llm.client import AsyncClient, Document, SamplingParameters
from stream2llm.cluster.config import ClusterConfig
from stream2llm.models.token_counter import token_counter
from stream2llm.serving.system.clock import SystemClock


def run(
    view: View,
    config: ClusterConfig,
    address: str | None,
    gap_s: float,
) -> None:
    """Asks the cluster at `address`, or one that lives as long as the question."""
    count_tokens = token_counter(config.model)
    documents = documents_from(topics, TOPICS, count_tokens)
    noise = documents_from(topics, NOISE_TOPICS, count_tokens)
    if address is not None:
        asyncio.run(ask_all_ways(address, documents, noise, gap_s, view))
        return
    with own_cluster(config, view.say) as cluster:
        address = cluster.router_addresses[0]
        results = asyncio.run(ask_all_ways(address, documents, noise, gap_s, view))
        compare_policies(cluster.set_policy, address, config.prefill.policy, results[0], view)
        for url in cluster.gateway_urls[:1]:
            ask_over_http(url, config.model_name, view)
    if config.gateway is not None:
        view.say(again(config))


async def ask_all_ways(
    address: str, documents: Sequence[Document], noise: Sequence[Document], gap_s: float, view: View
) -> list[Result]:
    """The question, three times; raises when one of them fails."""
    run_id = uuid.uuid4().hex[:8]
    _explain(view, documents, gap_s)
    results = []
    async with asyncio.timeout(ASK_TIMEOUT_S), AsyncClient(address) as client:
        # The first steps of an engine are slow; they would count against the first way.
        await client.generate("Hello", sampling=SamplingParameters(max_tokens=4)).answer()
        for way in Way:
            view.begin(way)
            arrivals = arrivals_of(way, documents, noise, gap_s)
            results.append(await Run(way, run_id, SystemClock(), view).answer(client, arrivals))
            view.end()
    view.table(results)
    return results


def compare_policies(
    set_policy: Callable[[str], object], address: str, chosen: str, measured: Result, view: View
) -> None:
    """Fifty sessions at once, first come first served and by the policy of the configuration.

    `measured` says how fast this machine computes.
    """
    speed = measured.finished.usage.computed_tokens / measured.ttft_from_seal_s
    texts, clock = contexts(speed), SystemClock()
    view.say(f"{len(texts)} sessions at once, every {LONG_EVERY}th with a long context:")
    for policy in dict.fromkeys(("fcfs", chosen)):
        set_policy(policy)
        view.say(f"  {asyncio.run(ask_at_once(address, policy, texts, clock))}")


def _explain(view: View, documents: Sequence[Document], gap_s: float) -> None:
    names = ", ".join(document.id for document in documents)
    view.say(f"question: {QUESTION}")
    view.say(f"documents: Python's help on {names}; complete after {gap_s * len(documents):g} s")
    view.say(
        "Each way begins with a line of its own, so that the prefix cache cannot help it with\n"
        "what an earlier way computed. TTFT from seal counts from the last document's arrival,\n"
        "TTFT from open from the begin of the retrieval. Answers are greedy."
    )
