"""Invariant 1: an answer depends on the sealed sequence alone, never on how it arrived."""

from __future__ import annotations

import asyncio
import random

import pytest

from stream2llm.api.handover import HANDOVER_MODES, HandoverMode
from stream2llm.client import AsyncClient, SamplingParameters
from tests.integration.cluster.exactness_cases import CASES
from tests.reference_engine import ReferenceEngine
from tests.streams import GREEDY, Outcome, Stream, play

ONE_BY_ONE = pytest.mark.cluster("sensitive-1x1")
TWO_BY_TWO = pytest.mark.cluster("sensitive-2x2")
each_handover = pytest.mark.parametrize("handover", HANDOVER_MODES)
BY_NAME = [pytest.param(case, id=case.name.replace(" ", "-")) for case in CASES]


def check(stream: Stream, outcome: Outcome, reference: ReferenceEngine) -> None:
    assert outcome.token_ids == reference.answer(stream.prompt, GREEDY.max_tokens or 0)
    usage = outcome.finished.usage
    assert usage.prompt_tokens == len(stream.prompt)
    assert usage.completion_tokens == len(outcome.token_ids)


@ONE_BY_ONE
@pytest.mark.parametrize("handover", ["streamed", pytest.param("at_seal", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stream", BY_NAME)
async def test_paced(
    client: AsyncClient, reference: ReferenceEngine, stream: Stream, handover: HandoverMode
) -> None:
    check(stream, await play(client, stream, handover=handover), reference)


@ONE_BY_ONE
@each_handover
async def test_all_at_once(
    client: AsyncClient, reference: ReferenceEngine, handover: HandoverMode
) -> None:
    """The same sessions, all at the same time and unpaced: chunks and batches fall otherwise."""
    async with asyncio.TaskGroup() as group:
        plays = (play(client, case, paced=False, handover=handover) for case in CASES)
        tasks = [group.create_task(each) for each in plays]
    for case, task in zip(CASES, tasks, strict=True):
        check(case, task.result(), reference)


@pytest.mark.slow  # it starts a cluster of its own
@pytest.mark.cluster("mixed-1")
async def test_a_mixed_worker_answers_all_at_once(
    client: AsyncClient, reference: ReferenceEngine
) -> None:
    """Its answers run beside the prefill of the others, and it has memory for a few of them."""
    sampling = SamplingParameters(max_tokens=64, temperature=0.0, ignore_eos=True)
    async with asyncio.TaskGroup() as group:
        plays = (play(client, case, sampling, paced=False) for case in CASES)
        tasks = [group.create_task(each) for each in plays]
    for case, task in zip(CASES, tasks, strict=True):
        assert task.result().token_ids == reference.answer(case.prompt, 64), case.name


@ONE_BY_ONE
async def test_one_shot(client: AsyncClient, reference: ReferenceEngine) -> None:
    prompts = [case.prompt for case in CASES if len(case.prompt) > 1][:8]
    for prompt in prompts:
        answer = await client.generate(prompt, sampling=GREEDY).answer()
        assert list(answer.token_ids) == reference.answer(prompt, 8)


@ONE_BY_ONE
async def test_a_prompt_of_one_token(client: AsyncClient, reference: ReferenceEngine) -> None:
    answer = await client.generate([17], sampling=GREEDY).answer()
    assert list(answer.token_ids) == reference.answer([17], 8)


@ONE_BY_ONE
async def test_long_answers(client: AsyncClient, reference: ReferenceEngine) -> None:
    """Across many blocks of the decode engine."""
    sampling = SamplingParameters(max_tokens=100, temperature=0.0, ignore_eos=True)
    outcome = await play(client, CASES[2], sampling)
    assert outcome.token_ids == reference.answer(CASES[2].prompt, 100)


@ONE_BY_ONE
async def test_equal_documents_of_different_sessions(
    client: AsyncClient, reference: ReferenceEngine
) -> None:
    """The second session finds the first one's blocks in the prefix cache, and is still right."""
    events = (("append", ("a",)), ("append", ("b",)))
    one = Stream("shared", events, {"a": 160, "b": 50}, suffix_tokens=5)
    two = Stream("shared", events, {"a": 160, "b": 50}, suffix_tokens=9)
    check(one, await play(client, one), reference)
    outcome = await play(client, two)
    check(two, outcome, reference)
    usage = outcome.finished.usage
    assert usage.computed_tokens + usage.reused_tokens == len(two.prompt)
    # What is left of each event is less than a block of 32, and the suffix.
    assert usage.computed_tokens < 3 * 32 + 9


@TWO_BY_TWO
@pytest.mark.slow
async def test_two_prefill_and_two_decode_workers(
    client: AsyncClient, reference: ReferenceEngine
) -> None:
    streams = [*CASES, *(_random_stream(seed) for seed in range(20))]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(play(client, stream)) for stream in streams]
    for stream, task in zip(streams, tasks, strict=True):
        check(stream, task.result(), reference)


def _random_stream(seed: int) -> Stream:
    rng = random.Random(seed)
    lengths: dict[str, int] = {}
    events = []
    for _ in range(rng.randint(2, 5)):
        fresh = [f"d{len(lengths) + i}" for i in range(rng.randint(1, 2))]
        lengths.update((name, rng.choice([0, 1, 20, 32, 90, 250])) for name in fresh)
        if rng.random() < 0.5:
            events.append(("append", tuple(fresh)))
        else:
            kept = rng.sample(sorted(lengths), k=min(len(lengths), rng.randint(1, 4)))
            events.append(("update", tuple(dict.fromkeys([*kept, *fresh]))))
    return Stream(f"random-{seed}", tuple(events), lengths)
