"""Sampling parameters across the seam between prefill and decode."""

from __future__ import annotations

import dataclasses

import pytest

from stream2llm.client import AsyncClient, FinishReason, SamplingParameters
from tests.reference_engine import ReferenceEngine
from tests.streams import Stream, collect, play

pytestmark = pytest.mark.cluster("sensitive-1x1")
STREAM = Stream("sampling", (("append", ("a",)),), {"a": 100})
# In one KV block.
BLOCK_TOKENS = 32
GREEDY = SamplingParameters(max_tokens=12, temperature=0.0, ignore_eos=True)


def greedy(**changes: object) -> SamplingParameters:
    return dataclasses.replace(GREEDY, **changes)  # type: ignore[arg-type]


@pytest.fixture
def plain_answer(reference: ReferenceEngine) -> list[int]:
    return reference.answer(STREAM.prompt, 12)


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
async def test_max_tokens(client: AsyncClient, plain_answer: list[int], max_tokens: int) -> None:
    outcome = await play(client, STREAM, greedy(max_tokens=max_tokens))
    assert outcome.token_ids == plain_answer[:max_tokens]
    assert outcome.finished.reason is FinishReason.LENGTH


@pytest.mark.parametrize("place", [0, 1, 5])
async def test_a_stop_token_ends_the_answer_wherever_it_comes(
    client: AsyncClient, plain_answer: list[int], place: int
) -> None:
    stop = plain_answer[place]
    expected = plain_answer[: plain_answer.index(stop) + 1]
    outcome = await play(client, STREAM, greedy(stop_token_ids=(stop,)))
    assert outcome.token_ids == expected
    assert outcome.finished.reason is FinishReason.STOP_TOKEN
    assert outcome.finished.stop_token_id == stop


@pytest.mark.parametrize(
    "penalties",
    [
        {"presence_penalty": 1.5},
        {"frequency_penalty": 1.5},
        {"presence_penalty": -2.0, "frequency_penalty": -2.0},
        {"repetition_penalty": 1.8},
        {"presence_penalty": 0.7, "frequency_penalty": 0.9, "repetition_penalty": 1.3},
    ],
    ids=lambda penalties: ",".join(name.removesuffix("_penalty") for name in penalties),
)
async def test_penalties_count_the_first_token(
    client: AsyncClient, reference: ReferenceEngine, penalties: dict[str, float]
) -> None:
    """Negative ones make the first token come again, which only they can cause."""
    outcome = await play(client, STREAM, greedy(**penalties))
    assert outcome.token_ids == reference.answer(STREAM.prompt, 12, **penalties)


async def test_a_negative_presence_penalty_shows_that_the_first_token_counts(
    client: AsyncClient, plain_answer: list[int]
) -> None:
    outcome = await play(client, STREAM, greedy(presence_penalty=-2.0, frequency_penalty=-2.0))
    assert outcome.token_ids[0] == plain_answer[0]
    assert outcome.token_ids != plain_answer


@pytest.mark.parametrize(("place", "min_tokens"), [(0, 1), (1, 2), (0, 5), (3, 12)])
async def test_no_stop_token_comes_before_min_tokens(
    client: AsyncClient,
    reference: ReferenceEngine,
    plain_answer: list[int],
    place: int,
    min_tokens: int,
) -> None:
    stops = {"stop_token_ids": [plain_answer[place]], "min_tokens": min_tokens}
    outcome = await play(client, STREAM, greedy(**stops))
    assert outcome.token_ids == reference.answer(STREAM.prompt, 12, **stops)
    assert outcome.token_ids[place] != plain_answer[place]


async def test_a_logit_bias_holds_for_every_token(
    client: AsyncClient, reference: ReferenceEngine, plain_answer: list[int]
) -> None:
    bias = {plain_answer[0]: -100.0, plain_answer[5]: 3.5, plain_answer[7]: -0.25}
    outcome = await play(client, STREAM, greedy(logit_bias=bias))
    assert outcome.token_ids == reference.answer(STREAM.prompt, 12, logit_bias=bias)
    assert outcome.token_ids[0] != plain_answer[0]


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (0, 2), (0, 4), (3, 6)])
async def test_a_bad_word_may_begin_in_the_first_token(
    client: AsyncClient, reference: ReferenceEngine, plain_answer: list[int], begin: int, end: int
) -> None:
    word = plain_answer[begin:end]
    outcome = await play(client, STREAM, greedy(bad_words=[word]))
    assert outcome.token_ids == reference.answer(STREAM.prompt, 12, bad_word_ids=[word])
    assert outcome.token_ids[: end - 1] == plain_answer[: end - 1]
    assert outcome.token_ids[end - 1] != plain_answer[end - 1]


async def test_bad_words_are_those_of_vllm(
    client: AsyncClient, reference: ReferenceEngine, plain_answer: list[int]
) -> None:
    """The engine that answers are compared with tokenizes the words itself."""
    async with client.session(prefix=STREAM.prompt, sampling=greedy(logprobs=0)) as session:
        answer = await session.answer()
    texts = [each.sampled.text for each in answer.logprobs]
    words = [text for text in texts if text.strip() and "\ufffd" not in text]
    outcome = await play(client, STREAM, greedy(bad_words=words))
    assert outcome.token_ids == reference.answer(STREAM.prompt, 12, bad_words=words)
    assert outcome.token_ids != plain_answer


@pytest.mark.parametrize("narrow", [{"min_p": 1.0}, {"top_k": 1}, {"top_p": 1e-6}], ids=str)
async def test_one_candidate_is_greedy(
    client: AsyncClient, plain_answer: list[int], narrow: dict[str, float]
) -> None:
    sampling = SamplingParameters(max_tokens=12, temperature=1.0, ignore_eos=True, **narrow)
    assert (await play(client, STREAM, sampling)).token_ids == plain_answer


@pytest.mark.parametrize("seed", [11, -1])
async def test_a_seeded_answer_is_repeatable(client: AsyncClient, seed: int) -> None:
    sampling = SamplingParameters(max_tokens=12, temperature=1.0, seed=seed, ignore_eos=True)
    first = await play(client, STREAM, sampling)
    second = await play(client, STREAM, sampling, paced=False)
    other = await play(client, STREAM, dataclasses.replace(sampling, seed=12))
    assert first.token_ids == second.token_ids
    assert other.token_ids != first.token_ids


async def test_several_answers_are_those_of_sessions_of_their_own(
    client: AsyncClient, plain_answer: list[int]
) -> None:
    """And the prompt is computed for one of them; the greedy ones are the reference engine's."""
    sampling = SamplingParameters(max_tokens=12, temperature=1.0, seed=11, ignore_eos=True, n=3)
    async with client.session(prefix=STREAM.prefix, sampling=sampling) as session:
        await session.append(STREAM.prompt[len(STREAM.prefix) :])
        answers = await session.answers()
    for index, each in enumerate(answers):
        alone = dataclasses.replace(sampling, seed=11 + index, n=1)
        assert list(each.token_ids) == (await play(client, STREAM, alone)).token_ids
    usages = [each.finished.usage for each in answers]
    assert sum(usage.prompt_tokens for usage in usages) == len(STREAM.prompt)
    assert all(usage.computed_tokens <= BLOCK_TOKENS for usage in usages[1:])
    both = await client.generate(STREAM.prompt, sampling=greedy(n=2)).answers()
    assert [list(each.token_ids) for each in both] == [plain_answer] * 2


async def test_logprobs_come_for_every_token(client: AsyncClient, plain_answer: list[int]) -> None:
    logprobs = []
    async with client.session(prefix=STREAM.prompt, sampling=greedy(logprobs=3)) as session:
        async for event in session.seal():
            logprobs += getattr(event, "logprobs", ())
    assert [item.sampled.token_id for item in logprobs] == plain_answer
    for item in logprobs:
        # Greedy: the sampled token is the likeliest.
        assert [entry.rank for entry in item.top] == [1, 2, 3]
        assert item.top[0].token_id == item.sampled.token_id


async def test_a_stop_string_may_span_the_two_workers(client: AsyncClient) -> None:
    """Cut out of the answer's own text: it begins in the first token and ends in the second."""
    whole = await play(client, STREAM, GREEDY)
    async with client.session(prefix=STREAM.prompt, sampling=greedy(max_tokens=1)) as session:
        first = await collect(session.seal())
    assert first.text, "this stream's first token has text"
    begin = len(first.text) - 1
    stop = whole.text[begin : len(first.text) + 1]
    outcome = await play(client, STREAM, greedy(stop_strings=(stop,)))
    assert outcome.finished.reason is FinishReason.STOP_STRING
    assert outcome.finished.stop_string == stop
    assert outcome.text == whole.text[: whole.text.index(stop)]


async def test_a_stop_string_in_the_first_token_needs_no_decode(client: AsyncClient) -> None:
    async with client.session(prefix=STREAM.prompt, sampling=greedy(max_tokens=1)) as session:
        first = await collect(session.seal())
    outcome = await play(client, STREAM, greedy(stop_strings=(first.text,)))
    assert outcome.text == ""
    assert len(outcome.token_ids) == 1
    assert outcome.finished.reason is FinishReason.STOP_STRING
