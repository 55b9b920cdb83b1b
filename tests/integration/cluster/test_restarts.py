"""A worker is lost at each moment of a session on real engines; no answer shows it.

The engines live on (`tests/dying_workers.py`); test_kill.py and test_handover_failures.py
kill them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest

from experiments.lab_cluster import workers
from stream2llm.client import AsyncClient, StructuredOutput
from stream2llm.cluster.cluster import Cluster
from tests.dying_workers import DyingDecode, DyingPrefill, dying
from tests.reference_engine import ReferenceEngine
from tests.router_beside import router_beside
from tests.streams import GREEDY, Stream, play

pytestmark = pytest.mark.cluster("sensitive-1x1")

NUM_TOKENS = 8
PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.9, "repetition_penalty": 1.3}
SAMPLING = replace(GREEDY, max_tokens=NUM_TOKENS, logprobs=1, **PENALTIES)
# Open, prefix, three events, and the seal.
NUM_REQUESTS = 6


@dataclass
class Site:
    """A router of the test's own before the cluster's workers."""

    client: AsyncClient
    prefill: DyingPrefill
    decode: DyingDecode


@pytest.fixture
async def site(cluster: Cluster, client: AsyncClient) -> AsyncIterator[Site]:
    """`client` is there for its check that no block is held afterwards."""
    async with AsyncExitStack() as stack:
        prefill, at_prefill = await stack.enter_async_context(
            dying(*workers(cluster, "prefill"), cluster.worker_token)
        )
        decode, at_decode = await stack.enter_async_context(
            dying(*workers(cluster, "decode"), cluster.worker_token)
        )
        beside = router_beside(cluster, at_prefill, at_decode)
        own = AsyncClient(await stack.enter_async_context(beside))
        await stack.enter_async_context(own)
        yield Site(own, prefill, decode)


def a_stream(name: str) -> Stream:
    events = (("append", ("a",)), ("update", ("a", "b")), ("append", ("c",)))
    return Stream(name, events, {"a": 70, "b": 40, "c": 90})


async def check(
    site: Site, reference: ReferenceEngine, name: str, *, index: int = 0, restarts: int = 1
) -> None:
    """`index` is the first token behind the loss.

    A bad word that ends there changes it, and `min_tokens` the one behind it, which is a
    stop token.
    """
    stream = a_stream(name)
    plain = reference.answer(stream.prompt, NUM_TOKENS, **PENALTIES)
    word = plain[max(index - 2, 0) : index + 1]
    stops: dict[str, Any] = {}
    if index + 1 < NUM_TOKENS:
        without = reference.answer(stream.prompt, NUM_TOKENS, **PENALTIES, bad_word_ids=[word])
        stops = {"stop_token_ids": [without[index + 1]], "min_tokens": index + 2}
    parameters = {**PENALTIES, **stops, "bad_word_ids": [word]}
    expected = reference.answer(stream.prompt, NUM_TOKENS, **parameters)
    assert expected[index] != plain[index]
    sampling = replace(SAMPLING, bad_words=(tuple(word),), **stops)
    outcome = await play(site.client, stream, sampling)
    assert outcome.token_ids == expected, name
    assert outcome.finished.restarts == restarts
    assert outcome.finished.usage.completion_tokens == len(expected)


async def check_structured(site: Site, reference: ReferenceEngine, name: str, regex: str) -> None:
    stream = a_stream(name)
    output = StructuredOutput(regex=regex)
    outcome = await play(site.client, stream, replace(SAMPLING, structured_output=output))
    constraint = {"structured_outputs": {"regex": regex}}
    expected = reference.answer(stream.prompt, NUM_TOKENS, **PENALTIES, **constraint)
    assert outcome.token_ids == expected, name
    assert outcome.finished.restarts == 1


async def test_decode_is_lost_at_each_token(site: Site, reference: ReferenceEngine) -> None:
    """The first is prefill's, and behind the last one nothing is lost."""
    for num_tokens in range(NUM_TOKENS - 1):
        site.decode.dies_after_tokens = num_tokens
        await check(site, reference, f"decode-{num_tokens}", index=num_tokens + 1)
        assert site.decode.dies_after_tokens is None


@pytest.mark.slow
async def test_a_structured_answer_goes_on_in_its_grammar(
    site: Site, reference: ReferenceEngine
) -> None:
    """Each token depends on how many characters there are before."""
    for num_tokens in (0, 1, 4):
        site.decode.dies_after_tokens = num_tokens
        name = f"structured-{num_tokens}"
        await check_structured(site, reference, name, regex="([a-z]{2}[0-9]{2} )+")
        assert site.decode.dies_after_tokens is None


@pytest.mark.slow
async def test_prefill_is_lost_at_each_event(site: Site, reference: ReferenceEngine) -> None:
    for num_requests in range(1, NUM_REQUESTS):
        site.prefill.dies_after_requests = num_requests
        await check(site, reference, f"prefill-{num_requests}")
        assert site.prefill.dies_after_requests is None
    site.prefill.dies_before_first_token = True
    await check(site, reference, "prefill-sealed")
    await check(site, reference, "undisturbed", restarts=0)
