"""Errors through a whole cluster: limits of the real model, and engines that live on.

`tests/unit/router/test_errors.py` has every error with its status, reason, field and message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from stream2llm.api.errors import (
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    Stream2LLMError,
)
from stream2llm.client import AsyncClient, Document, SamplingParameters
from stream2llm.cluster.cluster import Cluster
from tests.reference_engine import ReferenceEngine
from tests.streams import GREEDY, Stream, play

pytestmark = pytest.mark.cluster("sensitive-1x1")
SMALL = Stream("errors", (("append", ("a",)),), {"a": 40})
MAX_MODEL_LEN = 4096


@pytest.fixture(autouse=True)
async def _the_engines_live_on(
    client: AsyncClient, reference: ReferenceEngine
) -> AsyncIterator[None]:
    yield
    assert (await play(client, SMALL)).token_ids == reference.answer(SMALL.prompt, 8)


async def refused(
    make: Callable[[], Awaitable[object]], cls: type[Stream2LLMError], *words: str
) -> Stream2LLMError:
    """The error that running `make()` raises; its message has those words."""
    with pytest.raises(cls) as caught:
        await make()
    for word in words:
        assert word in caught.value.message, caught.value.message
    return caught.value


async def test_a_context_over_the_models_limit_names_both_numbers(client: AsyncClient) -> None:
    async def append_too_much() -> None:
        async with client.session(prefix=[1, 2, 3], sampling=GREEDY) as session:
            await session.append([7] * 4000)
            await session.append([7] * 200)
            await session.answer()

    await refused(append_too_much, InvalidRequestError, "4203", str(MAX_MODEL_LEN))


async def test_the_longest_prompt_that_fits_gets_one_token_and_a_longer_one_has_no_room(
    client: AsyncClient,
) -> None:
    answer = await client.generate([7] * (MAX_MODEL_LEN - 1), sampling=GREEDY).answer()
    assert len(answer.token_ids) == 1
    longer = client.generate([7] * MAX_MODEL_LEN, sampling=GREEDY)
    await refused(longer.answer, InvalidRequestError, str(MAX_MODEL_LEN))


async def test_what_is_wrong_with_a_request_is_named(client: AsyncClient) -> None:
    async def update() -> None:
        async with client.session(prefix=[1], sampling=GREEDY) as session:
            await session.update([Document("text", id="known"), Document(id="never-sent")])
            await session.answer()

    await refused(update, InvalidRequestError, "never-sent")
    await refused(lambda: client.generate("x", model="gpt-9").answer(), NotFoundError, "gpt-9")
    await refused(lambda: client.generate([10**6]).answer(), InvalidRequestError, "1000000")
    beyond = SamplingParameters(stop_token_ids=(10**6,))  # what the real vocabulary has
    error = await refused(
        lambda: client.generate("x", sampling=beyond).answer(), InvalidRequestError
    )
    assert (error.field, error.reason) == ("sampling.stop_token_ids", "BAD_SAMPLING")


async def test_too_many_open_sessions(client: AsyncClient, cluster: Cluster) -> None:
    limit = cluster.config.router.limits.max_open_sessions
    sessions = [client.session(prefix=[1], sampling=GREEDY) for _ in range(limit)]
    for session in sessions:
        await session.__aenter__()
    one_more = client.session(prefix=[1], sampling=GREEDY)
    assert (await refused(one_more.__aenter__, OverloadedError, str(limit))).retry_after_s
    for session in sessions:
        await session.__aexit__(None, None, None)
