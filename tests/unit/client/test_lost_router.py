"""Sessions whose router is lost, and go on at another one: real routers, real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stream2llm.api.errors import InvalidRequestError, UnavailableError
from stream2llm.client import (
    Accepted,
    AsyncClient,
    AsyncSession,
    Document,
    DocumentRef,
    Event,
    Finished,
    FinishReason,
    OversizedDocument,
    Progress,
    SamplingParameters,
    SessionRecovery,
    TokenDelta,
)
from stream2llm.client.stream import Gathered
from tests.lane_client import turns
from tests.polling import eventually
from tests.router_ring import Ring, a_ring, soon
from tests.tiny_model import EOS

pytestmark = pytest.mark.usefixtures("no_test_hangs")

NUM_TOKENS = 7
GREEDY = SamplingParameters(temperature=0, max_tokens=NUM_TOKENS, logprobs=1, ignore_eos=True)


@pytest.fixture
async def rings(tiny_model: Path) -> AsyncIterator[list[Ring]]:
    """Two routers with workers of their own, which give the same answers."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(a_ring(tiny_model)) for _ in range(2)]


@pytest.fixture
async def routers(rings: list[Ring]) -> AsyncIterator[AsyncClient]:
    async with AsyncClient([ring.address.grpc_address for ring in rings]) as client:
        yield client


async def holder_of(rings: list[Ring]) -> Ring:
    """The router that has the only session."""

    async def having() -> list[Ring]:
        return [ring for ring in rings if ring.prefill.records]

    (ring,) = await eventually(having, bool)
    return ring


def hold(rings: list[Ring], num_tokens: int) -> None:
    """Lets the workers give so many tokens of an answer; 0: prefill gives none."""
    for ring in rings:
        if num_tokens:
            ring.decode.hold_after_steps = num_tokens - 1
        else:
            ring.prefill.may_sample.clear()


def let_go(rings: list[Ring]) -> None:
    for ring in rings:
        ring.prefill.may_sample.set()
        ring.decode.hold_after_steps = None
        ring.decode.may_step.set()


def check(ring: Ring, events: list[Event], prompt: list[int], restarts: int = 1) -> None:
    """The answer is that of an undisturbed session, each token and character once."""
    expected = ring.brain.answer(prompt, NUM_TOKENS)
    deltas = [event for event in events if isinstance(event, TokenDelta)]
    assert [token for delta in deltas for token in delta.token_ids] == expected
    assert "".join(delta.text for delta in deltas) == ring.decode_text(expected)
    logprobs = [each for delta in deltas for each in delta.logprobs]
    assert [each.sampled.token_id for each in logprobs] == expected
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.restarts == restarts
    assert finished.reason is FinishReason.LENGTH
    assert finished.usage.completion_tokens == NUM_TOKENS
    assert finished.usage.prompt_tokens == len(prompt)


STEPS: list[Callable[[AsyncSession], Any]] = [
    lambda session: session.append(Document("one two", id="a"), Document("three", id="b")),
    lambda session: session.update([DocumentRef("a"), Document("four five", id="c")]),
    lambda session: session.append("six seven eight"),
    lambda session: session.update([DocumentRef("b"), DocumentRef("c"), Document("nine", id="d")]),
    lambda session: session.append("ten"),
]
TEXTS = ["begin", "three", "four five", "nine", "ten", "?"]


def prompt_of(ring: Ring, texts: list[str] = TEXTS) -> list[int]:
    return [token for text in texts for token in ring.encode(text)]


@pytest.mark.parametrize("num_before", range(len(STEPS) + 1))
async def test_a_router_lost_before_the_seal_shows_as_progress_that_falls_back(
    rings: list[Ring], routers: AsyncClient, num_before: int
) -> None:
    seen: list[Event] = []
    options = {"prefix": "begin", "suffix": "?", "sampling": GREEDY, "session_id": "mine"}
    async with routers.session(**options, on_event=seen.append) as session:
        for step in STEPS[:num_before]:
            await step(session)
        lost = await holder_of(rings)
        await lost.lose_router()
        for step in STEPS[num_before:]:
            await step(session)
        events = [event async for event in session.seal()]
    survivor = next(ring for ring in rings if ring is not lost)
    check(survivor, events, prompt_of(survivor))
    assert survivor.record.sequence[: len(prompt_of(survivor))] == prompt_of(survivor)
    assert sum(isinstance(event, Accepted) for event in seen) == 1
    restarts = [event.restarts for event in seen if isinstance(event, Progress)]
    assert restarts == sorted(restarts)
    assert restarts[-1] == 1
    assert session.progress.last_sequence == 1 + len(STEPS) + 1
    assert survivor.metric("stream2llm_session_restarts_total", cause="router_lost") == 1


@pytest.mark.parametrize("num_received", range(NUM_TOKENS))
async def test_a_lost_router_shows_at_no_token_of_the_answer(
    rings: list[Ring], routers: AsyncClient, num_received: int
) -> None:
    hold(rings, num_received)
    async with routers.session(prefix="begin", sampling=GREEDY) as session:
        await session.append("one two")
        answer = aiter(session.seal())
        events = await next_deltas(answer, num_received)
        rest = asyncio.create_task(collect(answer))
        lost = await holder_of(rings)
        await soon(lost.record.sealed.wait())
        await lost.lose_router()
        let_go(rings)
        events += await rest
    survivor = next(ring for ring in rings if ring is not lost)
    check(survivor, events, prompt_of(survivor, ["begin", "one two"]))
    assert survivor.record.answer_tokens == num_received


@pytest.mark.parametrize("is_update", [False, True])
async def test_what_came_with_the_seal_is_not_lost_with_the_router(
    rings: list[Ring], routers: AsyncClient, *, is_update: bool
) -> None:
    hold(rings, 0)
    async with routers.session(prefix="begin", sampling=GREEDY) as session:
        await session.update([Document("one two", id="a"), Document("three", id="b")])
        if is_update:
            texts = ["begin", "four", "one two"]
            sealing = session.seal(update=[Document("four", id="c"), DocumentRef("a")])
        else:
            texts = ["begin", "one two", "three", "four"]
            sealing = session.seal(append=["four"])
        answering = asyncio.create_task(collect(aiter(sealing)))
        lost = await holder_of(rings)
        await soon(lost.record.sealed.wait())
        await lost.lose_router()
        let_go(rings)
        events = await answering
    survivor = next(ring for ring in rings if ring is not lost)
    for ring in rings:
        assert ring.record.sequence == prompt_of(survivor, texts)
    check(survivor, events, prompt_of(survivor, texts))


async def collect(answer: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in answer]


async def next_deltas(answer: AsyncIterator[Event], num_tokens: int) -> list[Event]:
    """Deltas that together have so many tokens, however these travelled."""
    found: list[Event] = []
    while num_tokens > 0:
        delta = await next_delta(answer)
        found.append(delta)
        num_tokens -= len(delta.token_ids)
    return found


async def next_delta(answer: AsyncIterator[Event]) -> TokenDelta:
    while not isinstance(event := await anext(answer), TokenDelta):
        pass
    return event


async def test_each_answer_of_a_session_goes_on_at_another_router(
    rings: list[Ring], routers: AsyncClient
) -> None:
    for ring in rings:
        ring.brain.heeds_seeds = True
    hold(rings, 3)
    sampling = SamplingParameters(n=2, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True)
    async with routers.session(prefix="begin", sampling=sampling) as session:
        answer = aiter(session.seal())
        events: list[Event] = [await next_delta(answer)]
        while {0, 1} - {each.index for each in events if isinstance(each, TokenDelta)}:
            events.append(await anext(answer))
        lost = await holder_of(rings)
        await lost.lose_router()
        let_go(rings)
        events += await collect(answer)
    gathered = Gathered()
    for event in events:
        gathered.add(event)
    survivor = next(ring for ring in rings if ring is not lost)
    for index, each in enumerate(gathered.answers()):
        expected = survivor.brain.answer(prompt_of(survivor, ["begin"]), NUM_TOKENS, 5 + index)
        assert list(each.token_ids) == expected
        assert each.text == survivor.decode_text(expected)
        assert (each.index, each.finished.restarts) == (index, 1)
    assert sum(isinstance(event, Finished) for event in events) == 2


ENDS = [
    (["on", "e ", "tw", "o "], {"stop_strings": ["e tw"]}),
    (["on", "e ", "tw", "o "], {"stop_strings": ["e twice"]}),
    (["a", "€", "😀", "é"], {}),
    (["a", "€"], {"max_tokens": 3}),
]


@pytest.mark.parametrize(("texts", "sampling"), ENDS)
async def test_text_goes_on_over_a_lost_router_at_any_token(
    rings: list[Ring], tiny_model: Path, texts: list[str], sampling: Any
) -> None:
    parameters = SamplingParameters(temperature=0, **sampling)
    script = [token for text in texts for token in rings[0].encode(text)] + [EOS]
    for ring in rings:
        ring.brain.script = script
    (first, second) = rings
    async with AsyncClient(first.address.grpc_address) as client:
        whole = await client.generate("begin", sampling=parameters).answer()
    for num_received in range(1, len(whole.token_ids)):
        async with a_ring(tiny_model, script=script) as victim:
            hold([victim], num_received)
            addresses = [victim.address.grpc_address, second.address.grpc_address]
            async with AsyncClient(addresses) as client:
                client._connections.routers._order.sort()
                async with client.session(prefix="begin", sampling=parameters) as session:
                    answer = aiter(session.seal())
                    deltas = await next_deltas(answer, num_received)
                    await victim.lose_router()
                    rest = [event async for event in answer]
        deltas += [event for event in rest if isinstance(event, TokenDelta)]
        assert "".join(delta.text for delta in deltas) == whole.text
        assert tuple(t for delta in deltas for t in delta.token_ids) == whole.token_ids
        finished = rest[-1]
        assert (finished.reason, finished.stop_string, finished.restarts) == (
            whole.finished.reason,
            whole.finished.stop_string,
            1,
        )


async def test_without_recovery_a_lost_router_ends_the_session(
    rings: list[Ring], routers: AsyncClient
) -> None:
    async with routers.session(prefix="begin", recover=False) as session:
        await (await holder_of(rings)).lose_router()
        with pytest.raises(UnavailableError):
            await session.answer()
    assert sum(len(ring.prefill.records) for ring in rings) == 1


async def test_a_session_that_has_sent_too_much_is_not_opened_again(
    rings: list[Ring], routers: AsyncClient
) -> None:
    limits = SessionRecovery(max_kept_bytes=900)
    async with routers.session(prefix="begin", recover=limits) as session:
        await session.append("x" * 901)
        await (await holder_of(rings)).lose_router()
        with pytest.raises(UnavailableError, match=r"more than 900 bytes \(max_kept_bytes\)"):
            await session.answer()


async def test_a_conversation_with_tools_is_the_same_at_another_router(
    rings: list[Ring], routers: AsyncClient
) -> None:
    called = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "look"}}]}
    chat = [
        {"role": "user", "content": "Why?", "name": "me"},
        called,
        {"role": "tool", "content": "{{context}}", "tool_call_id": "1"},
    ]
    options = {"tools": [{"name": "look"}], "chat_template_kwargs": {"enable_thinking": False}}
    async with routers.session(chat=chat, sampling=GREEDY, **options) as session:
        await session.append("one")
        await until_received(session, 2)
        lost = await holder_of(rings)
        await lost.told(1)
        begun = list(lost.record.sequence)
        await lost.lose_router()
        assert (await session.answer()).finished.restarts == 1
    survivor = next(ring for ring in rings if ring is not lost)
    assert survivor.record.sequence[: len(begun)] == begun
    assert "look" in survivor.decode_text(begun)


@pytest.mark.parametrize(
    "options", [{"ordering": "stable"}, {"oversized_documents": "cut"}], ids=["stable", "cut"]
)
async def test_a_context_that_depends_on_each_event_is_the_same_at_another_router(
    rings: list[Ring], routers: AsyncClient, options: dict[str, str]
) -> None:
    first = rings[0]
    async with AsyncClient(first.address.grpc_address) as client:
        whole, undisturbed, _ = await long_and_reordered(client, options)
    first.prefill.records.clear()
    events, disturbed, reported = await long_and_reordered(routers, options, rings)
    assert [e.token_ids for e in events if isinstance(e, TokenDelta)] == [
        e.token_ids for e in whole if isinstance(e, TokenDelta)
    ]
    assert events[-1].document_order == whole[-1].document_order
    assert events[-1].restarts == 1
    assert disturbed == undisturbed
    assert reported == len(disturbed)


async def long_and_reordered(
    client: AsyncClient, options: dict[str, Any], rings: list[Ring] | None = None
) -> tuple[list[Any], tuple[OversizedDocument, ...], int]:
    """The events, the oversized documents, and how many of them were reported."""
    seen: list[Event] = []
    async with client.session(
        prefix="begin", sampling=GREEDY, on_event=seen.append, **options
    ) as session:
        await session.update([Document(text * 20, id=text) for text in "abc"])
        await session.update([DocumentRef("c"), Document("d" * 20, id="d"), DocumentRef("a")])
        await session.append("e" * (20 if "ordering" in options else 2000))
        if rings is not None:
            await until_received(session, 4)
            await (await holder_of(rings)).lose_router()
        events = [event async for event in session.seal()]
    reported = sum(isinstance(event, OversizedDocument) for event in seen)
    return events, session.oversized_documents, reported


async def until_received(session: AsyncSession, sequence: int) -> None:
    """The router has handled the event of that number."""
    async for event in session.events():
        if isinstance(event, Progress) and event.last_sequence >= sequence:
            return


async def test_the_only_router_is_waited_for_until_it_is_back(rings: list[Ring]) -> None:
    (ring, _) = rings
    hold([ring], 3)
    async with (
        AsyncClient(ring.address.grpc_address) as client,
        client.session(prefix="begin", sampling=GREEDY) as session,
    ):
        answer = aiter(session.seal())
        events = await next_deltas(answer, 3)
        await ring.lose_router()
        while not isinstance(event := await anext(answer), Progress) or not event.restarts:
            pass
        let_go([ring])
        await ring.return_router()
        events += await collect(answer)
    check(ring, events, prompt_of(ring, ["begin"]))


async def test_a_target_of_several_routers_goes_on_at_another_of_them(rings: list[Ring]) -> None:
    """As a name does that stands for all of them: gRPC takes one that serves."""
    addresses = ",".join(ring.address.grpc_address for ring in rings)
    async with (
        AsyncClient(f"ipv4:{addresses}") as client,
        client.session(prefix="begin", sampling=GREEDY) as session,
    ):
        await session.append("one two")
        lost = await holder_of(rings)
        await lost.lose_router()
        events = await collect(aiter(session.seal()))
    survivor = next(ring for ring in rings if ring is not lost)
    check(survivor, events, prompt_of(survivor, ["begin", "one two"]))


async def test_a_router_that_drains_hands_its_sessions_to_another(
    rings: list[Ring], routers: AsyncClient
) -> None:
    async with routers.session(prefix="begin", sampling=GREEDY) as session:
        lost = await holder_of(rings)
        draining = asyncio.create_task(lost.router.drain(0))
        events = await collect(aiter(session.seal()))
        await draining
    survivor = next(ring for ring in rings if ring is not lost)
    check(survivor, events, prompt_of(survivor, ["begin"]))


async def test_complete_prompts_and_questions_go_to_a_router_that_is_there(
    rings: list[Ring], routers: AsyncClient
) -> None:
    await rings[0].lose_router()
    for _ in range(3):
        assert (await routers.model_info()).model == "tiny"
        answer = await routers.generate("begin", sampling=GREEDY).answer()
        assert len(answer.token_ids) == NUM_TOKENS
        async with routers.session(prefix="begin", sampling=GREEDY) as session:
            assert (await session.answer()).finished.restarts == 0
    with pytest.raises(InvalidRequestError, match="logprobs"):
        await routers.generate("begin", sampling=SamplingParameters(logprobs=99)).answer()


@pytest.mark.parametrize("num_received", range(NUM_TOKENS))
@pytest.mark.parametrize("as_ids", [False, True], ids=["text", "ids"])
async def test_a_complete_prompt_goes_on_behind_each_token(
    rings: list[Ring], routers: AsyncClient, num_received: int, as_ids: bool
) -> None:
    hold(rings, num_received)
    prompt = rings[0].encode("begin")
    answer = aiter(routers.generate(prompt if as_ids else "begin", sampling=GREEDY))
    events = await next_deltas(answer, num_received)
    rest = asyncio.create_task(collect(answer))
    lost = await holder_of(rings)
    await soon(lost.record.sealed.wait())
    await lost.lose_router()
    let_go(rings)
    events += await rest
    survivor = next(ring for ring in rings if ring is not lost)
    check(survivor, events, prompt)
    assert survivor.record.answer_tokens == num_received
    restarts = [event.restarts for event in events if isinstance(event, Progress)]
    assert restarts == sorted(restarts)


@pytest.mark.parametrize(("num_received", "last"), [(0, None), (3, None), (2, 4)])
async def test_a_chat_goes_on_where_its_tokens_are_known(
    rings: list[Ring], routers: AsyncClient, num_received: int, last: int | None
) -> None:
    hold(rings, num_received)
    rendered = rings[0].encode_written(turns(("user", "Why?"), answering=True))
    prompt = rendered[-last:] if last else rendered
    calls: list[str] = []

    async def prompt_tokens() -> list[int]:
        calls.append("asked")
        return prompt

    sampling = replace(GREEDY, truncate_prompt_tokens=last)
    chat = [{"role": "user", "content": "Why?"}]
    answer = aiter(routers.generate(chat, sampling=sampling, prompt_tokens=prompt_tokens))
    events = await next_deltas(answer, num_received)
    rest = asyncio.create_task(collect(answer))
    lost = await holder_of(rings)
    await soon(lost.record.sealed.wait())
    assert calls == []
    await lost.lose_router()
    let_go(rings)
    events += await rest
    survivor = next(ring for ring in rings if ring is not lost)
    check(survivor, events, prompt)
    assert calls == ["asked"]


CHAT = [{"role": "user", "content": "Why?"}]
NO_SESSION = pytest.mark.parametrize(
    ("prompt", "more"),
    [(CHAT, {}), ("begin and more", {"truncate_prompt_tokens": 1})],
    ids=["chat", "truncated"],
)


@NO_SESSION
async def test_a_prompt_that_is_no_session_is_asked_again_before_its_answer(
    rings: list[Ring], routers: AsyncClient, prompt: Any, more: dict[str, int]
) -> None:
    hold(rings, 0)
    sampling = SamplingParameters(
        temperature=0, max_tokens=NUM_TOKENS, logprobs=1, ignore_eos=True, **more
    )
    asked = asyncio.create_task(collect(aiter(routers.generate(prompt, sampling=sampling))))
    lost = await holder_of(rings)
    await soon(lost.record.sealed.wait())
    await lost.lose_router()
    let_go(rings)
    events = await asked
    survivor = next(ring for ring in rings if ring is not lost)
    assert survivor.record.sequence == lost.record.sequence
    assert survivor.record.open.session_id == lost.record.open.session_id
    check(survivor, events, lost.record.sequence)
    assert sum(isinstance(event, Accepted) for event in events) == 1
    restarts = [event.restarts for event in events if isinstance(event, Progress)]
    assert restarts == sorted(restarts)


@NO_SESSION
async def test_a_prompt_that_is_no_session_does_not_go_on_in_its_answer(
    rings: list[Ring], routers: AsyncClient, prompt: Any, more: dict[str, int]
) -> None:
    """The error says why, and that another try is worth it."""
    hold(rings, 1)
    sampling = SamplingParameters(max_tokens=NUM_TOKENS, **more)
    answer = aiter(routers.generate(prompt, sampling=sampling))
    await next_delta(answer)
    await (await holder_of(rings)).lose_router()
    with pytest.raises(UnavailableError, match="its answer had begun, and chat") as caught:
        await collect(answer)
    assert caught.value.retry_after_s
    assert sum(len(ring.prefill.records) for ring in rings) == 1


@pytest.mark.parametrize(
    "recover", [False, SessionRecovery(max_kept_bytes=3)], ids=["not asked", "too large"]
)
async def test_a_prompt_that_is_not_kept_ends_with_its_router(
    rings: list[Ring], routers: AsyncClient, recover: Any
) -> None:
    hold(rings, 1)
    sampling = SamplingParameters(max_tokens=NUM_TOKENS)
    answer = aiter(routers.generate("begin", sampling=sampling, recover=recover))
    await next_delta(answer)
    await (await holder_of(rings)).lose_router()
    with pytest.raises(UnavailableError):
        await collect(answer)
    assert sum(len(ring.prefill.records) for ring in rings) == 1


async def test_without_any_router_a_session_fails_at_once(rings: list[Ring], routers: Any) -> None:
    for ring in rings:
        await ring.lose_router()
    with pytest.raises(UnavailableError) as caught:
        async with routers.session(prefix="begin"):
            pass
    assert "opened the session again" not in caught.value.message
