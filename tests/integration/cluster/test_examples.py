"""The examples on a real cluster, each with a tenth of its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.agent.steps import QUESTIONS
from examples.agent.steps import run as run_agent
from examples.crawl.steps import Crawl
from examples.crawl.steps import run as run_crawl
from examples.vector_search.index import open_index
from examples.vector_search.steps import run as run_vector_search
from examples.vector_search.ways import Searching, Way
from stream2llm.client import AsyncClient
from stream2llm.cluster.cluster import Cluster
from stream2llm.models.token_counter import token_counter

pytestmark = [pytest.mark.slow, pytest.mark.cluster("smollm2-1x1")]
MODEL = "smollm2-135m-instruct"


async def test_each_example_streams_into_answers(
    cluster: Cluster, client: AsyncClient, tmp_path: Path
) -> None:
    address, lines = cluster.router_addresses[0], list[str]()

    crawl = Crawl(max_pages=3, mean_delay_s=0.2)
    outcome = await run_crawl(address, crawl, token_counter(MODEL), lines.append)
    assert outcome.num_pages == 3
    assert 0 < outcome.prefilled_tokens <= outcome.prompt_tokens
    assert outcome.answer

    index = open_index(MODEL, 1000, lines.append, cache=tmp_path)
    assert open_index(MODEL, 1000, pytest.fail, cache=tmp_path).texts == index.texts
    searching, ways = Searching(seconds=0.5), [Way.WAIT, Way.STREAM]
    asked = await run_vector_search(address, index, 2, ways, searching, lines.append)
    assert len(asked) == 4
    assert any(each.answer for each in asked)
    assert asked[0].invalidated_tokens == 0  # waiting
    # All have the same five documents, behind a first line of their own.
    assert min(each.prompt_tokens for each in asked) > 100

    turns = await run_agent(address, QUESTIONS[:2], 0.1, lines.append)
    assert all(turn.answer for turn in turns)
    # The conversation so far is found in the prefix cache, but for its last block.
    assert turns[1].reused_tokens > turns[0].prompt_tokens / 2
