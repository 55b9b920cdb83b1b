"""The asynchronous session against a scripted server, over real gRPC."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest

from stream2llm.api.errors import (
    EventOrderError,
    IdleTimeoutError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    Stream2LLMError,
    UnavailableError,
)
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client import (
    Accepted,
    AsyncClient,
    AsyncSession,
    Document,
    DocumentRef,
    Event,
    Finished,
    FinishReason,
    Progress,
    SamplingParameters,
    TokenDelta,
)
from tests import fake_router
from tests.fake_router import Conversation, FakeRouter
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("no_test_hangs")


async def test_a_seal_that_is_not_iterated_is_a_warning_where_the_block_ends(client, router):
    async def forget() -> None:
        async with client.session() as session:
            await session.append("x")
            session.seal()
            await session.append("y")

    with pytest.warns(RuntimeWarning, match="its answer never read") as caught:
        await forget()
    assert caught[0].filename == __file__
    assert await router.ends.get() == "cancelled"


async def test_an_error_in_the_block_is_not_joined_by_a_warning(client):
    async def fail() -> None:
        async with client.session() as session:
            session.seal()
            raise KeyError

    with pytest.raises(KeyError):
        await fail()


async def test_of_two_seals_one_is_iterated(client):
    async with client.session() as session:
        session.seal()
        assert (await session.seal().answer()).text == "one two three"


async def takes_change(conversation: Conversation) -> None:
    """As `polite`, by a server of today."""
    await conversation.accept(seal_takes_change=True)
    while (request := await conversation.next()) is not None:
        if request.WhichOneof("event") == "seal":
            await conversation.answer("one", " two", " three")
            return
        await conversation.progress()


async def test_the_last_documents_come_with_the_seal(client, router):
    router.script = takes_change
    async with client.session() as session:
        await session.append("first")
        events = [event async for event in session.seal("Q?", append=["second", [3, 4]])]
    assert isinstance(events[-1], Finished)
    assert [request.WhichOneof("event") for request in router.received] == [
        "open",
        "append",
        "seal",
    ]
    sealed = router.received[-1]
    assert sealed.sequence == 3
    assert sealed.seal.suffix.text == "Q?"
    text, ids = sealed.seal.append.documents
    assert (text.text, list(ids.token_ids.ids)) == ("second", [3, 4])


async def test_the_last_list_comes_with_the_seal(client, router):
    router.script = takes_change
    async with client.session() as session:
        await session.update([Document("first", id="a")])
        answer = await session.answer(update=[Document("second", id="b"), DocumentRef("a")])
    assert answer.text == "one two three"
    assert [each.id for each in router.received[-1].seal.update.documents] == ["b", "a"]


@pytest.mark.parametrize("change", ["append", "update"])
async def test_a_server_that_would_ignore_them_gets_an_event_before_the_seal(
    client, router, change
):
    async with client.session() as session:
        answer = await session.answer("Q?", **{change: [Document("last", id="a")]})
    assert answer.text == "one two three"
    kinds = [request.WhichOneof("event") for request in router.received]
    assert kinds == ["open", change, "seal"]
    assert [request.sequence for request in router.received] == [1, 2, 3]
    assert router.received[-1].seal == pb.SealContext(suffix=pb.Content(text="Q?"))


async def test_a_seal_brings_one_change(client):
    async with client.session() as session:
        with refused(field="seal.append"):
            session.seal(append=["a"], update=["b"])
        with refused(field="append.documents[0].content"):
            session.seal(append=[DocumentRef("a")])
        assert (await session.answer()).text == "one two three"


async def test_a_session_sends_its_events_in_order_and_yields_the_answer(client, router):
    sampling = SamplingParameters(max_tokens=3, temperature=0, stop_strings=("x",))
    async with client.session(prefix="P", suffix="Q?", sampling=sampling) as session:
        await session.append("first", Document([1, 2], id="second"))
        await session.update([DocumentRef("second"), Document("third", id="c")])
        events = [event async for event in session.seal()]

    assert [event.text for event in events if isinstance(event, TokenDelta)] == [
        "one",
        " two",
        " three",
    ]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.LENGTH
    assert events[-1].timings.ttft_from_seal_s == 0.25
    kinds = [request.WhichOneof("event") for request in router.received]
    assert kinds == ["open", "append", "update", "seal"]
    assert [request.sequence for request in router.received] == [1, 2, 3, 4]
    opened, append, update, _ = router.received
    assert opened.open.plain.prefix.text == "P"
    assert opened.open.plain.suffix.text == "Q?"
    assert opened.open.sampling.temperature == 0
    assert opened.open.sampling.HasField("temperature")
    assert list(append.append.documents[1].token_ids.ids) == [1, 2]
    assert [d.id for d in update.update.documents] == ["second", "c"]
    assert update.update.documents[0].WhichOneof("content") is None
    assert await router.ends.get() == "returned"


async def test_an_ordering_and_its_note_are_sent(client, router):
    async with client.session(ordering="stable", ranking_note="best: {ranking}") as session:
        await session.answer()
    opened = router.received[0].open
    assert opened.ordering == pb.DOCUMENT_ORDERING_STABLE
    assert opened.ranking_note == "best: {ranking}"


async def test_documents_stand_as_given_unless_a_session_says_otherwise(client, router):
    async with client.session() as session:
        await session.answer()
    opened = router.received[0].open
    assert opened.ordering == pb.DOCUMENT_ORDERING_AS_GIVEN
    assert not opened.HasField("ranking_note")


async def test_an_unknown_ordering_is_refused_before_anything_is_sent(client):
    with refused("'best'; it must be as_given or stable", field="open.ordering"):
        client.session(ordering="best")


async def test_a_chat_template_and_a_new_suffix_are_sent(client, router):
    chat = [{"role": "user", "content": "<<docs>> Why?"}]
    async with client.session(chat=chat, context_slot="<<docs>>", session_id="mine") as session:
        assert session.session_id == "mine"
        await session.answer()
    opened = router.received[0].open
    assert opened.chat.context_slot == "<<docs>>"
    assert opened.chat.messages[0].content == "<<docs>> Why?"


async def test_the_seal_may_replace_the_suffix(client, router):
    async with client.session(suffix="old") as session:
        answer = await session.answer(suffix="new")
    assert router.received[1].seal.suffix.text == "new"
    assert answer.text == "one two three"
    assert answer.token_ids == (0, 1, 2)


async def test_events_before_the_seal_are_seen_live(client):
    seen: list[Event] = []
    async with client.session(on_event=seen.append) as session:
        events = session.events()
        assert isinstance(await anext(events), Accepted)
        await session.append("one")
        first = await anext(events)
        assert isinstance(first, Progress)
        assert first.received_tokens == 10
        assert session.progress == first
        assert session.model == "fake"
        await session.answer()
        assert all([isinstance(event, Progress) async for event in events])  # it ends
    assert [type(event) for event in seen[:2]] == [Accepted, Progress]
    assert isinstance(seen[-1], Finished)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
        (grpc.StatusCode.FAILED_PRECONDITION, EventOrderError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, IdleTimeoutError),
        (grpc.StatusCode.INTERNAL, InternalError),
    ],
)
async def test_a_refused_open_raises_the_typed_error(client, router, code, expected):
    async def refuse(conversation: Conversation) -> None:
        await conversation.next()
        details = [
            fake_router.error_info("SOME_REASON"),
            fake_router.bad_field("open.model"),
            fake_router.retry_info(2.5),
        ]
        await conversation.fail(code, "no, because", *details)

    router.script = refuse
    with pytest.raises(expected) as caught:
        async with client.session():
            pytest.fail("the session was refused")
    error = caught.value
    assert type(error) is expected
    assert (error.message, error.reason) == ("no, because", "SOME_REASON")
    assert (error.field, error.retry_after_s) == ("open.model", 2.5)


async def fail_after_first_append(conversation: Conversation) -> None:
    await conversation.accept()
    await conversation.next()
    details = fake_router.error_info("WORKER_LOST")
    await conversation.fail(grpc.StatusCode.UNAVAILABLE, "prefill-0 died", details)


async def after_the_failure(session) -> None:
    """Returns when the client knows that the session has failed."""
    with pytest.raises(UnavailableError):
        async for _ in session.events():
            pass


@pytest.mark.parametrize("call", ["append", "update", "update by id", "seal"])
async def test_a_failure_while_appending_surfaces_on_the_next_call(client, router, call):
    router.script = fail_after_first_append
    async with client.session() as session:
        await session.append("one")
        await after_the_failure(session)
        calls = {
            "append": lambda: session.append("two"),
            "update": lambda: session.update(["two"]),
            "update by id": lambda: session.update([DocumentRef("a")]),
            "seal": lambda: session.answer(),
        }
        with pytest.raises(UnavailableError, match="prefill-0 died") as caught:
            await calls[call]()
    assert caught.value.reason == "WORKER_LOST"


async def test_appending_without_pause_to_a_session_that_fails_does_not_hang(client, router):
    router.script = fail_after_first_append

    async def append_for_ever() -> None:
        async with client.session() as session:
            while True:
                await session.append("x" * 100_000)

    with pytest.raises(UnavailableError):
        await append_for_ever()


async def test_append_waits_for_credit_and_goes_on_when_it_comes(client, router):
    refilled = asyncio.Event()

    async def stingy(conversation: Conversation) -> None:
        await conversation.accept(credit_tokens=0)
        await refilled.wait()
        await conversation.progress(credit_tokens=5)
        while (await conversation.next()).WhichOneof("event") != "seal":
            pass
        await conversation.answer("done")

    router.script = stingy
    async with client.session() as session:
        append = asyncio.create_task(session.append("one"))
        await session.update([])  # carries no content: needs no credit
        assert not append.done()
        refilled.set()
        await append
        assert (await session.answer()).text == "done"
    kinds = [request.WhichOneof("event") for request in router.received]
    assert kinds == ["open", "update", "append", "seal"]


async def test_waiting_for_credit_ends_when_the_session_fails(client, router):
    async def stingy(conversation: Conversation) -> None:
        await conversation.accept(credit_tokens=0)
        await conversation.next()
        await conversation.fail(grpc.StatusCode.UNAVAILABLE, "gone", fake_router.error_info("X"))

    router.script = stingy
    async with client.session() as session:
        append = asyncio.create_task(session.append("one"))
        await session.update([])  # the script fails now
        with pytest.raises(UnavailableError, match="gone"):
            await append


async def test_leaving_early_cancels_the_rpc(client, router):
    async with client.session() as session:
        await session.append("one")
    assert await router.ends.get() == "cancelled"


async def test_leaving_in_the_middle_of_the_answer_cancels_the_rpc(client, router):
    async def endless(conversation: Conversation) -> None:
        await conversation.accept()
        await conversation.next()
        await conversation.answer_begins("one")
        await fake_router.forever()

    router.script = endless
    async with client.session() as session:
        async for event in session.seal():
            assert event == TokenDelta("one", (0,))
            break
    assert await router.ends.get() == "cancelled"


async def test_an_error_in_the_block_cancels_the_rpc(client, router):
    with pytest.raises(ZeroDivisionError):
        async with client.session():
            raise ZeroDivisionError
    assert await router.ends.get() == "cancelled"


async def test_cancelling_the_task_that_waits_for_credit_cancels_the_rpc(client, router):
    waiting = asyncio.Event()

    async def stingy(conversation: Conversation) -> None:
        await conversation.accept(credit_tokens=0)
        waiting.set()
        await fake_router.forever()

    async def use() -> None:
        async with client.session() as session:
            await session.append("one")

    router.script = stingy
    task = asyncio.create_task(use())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await router.ends.get() == "cancelled"


async def test_no_task_is_left_behind(client):
    before = asyncio.all_tasks()
    async with client.session() as session:
        await session.answer()
    assert {task.get_name() for task in asyncio.all_tasks() - before} & {
        "stream2llm-session-reader"
    } == set()


async def test_events_out_of_order_are_refused_here(client, router):
    session = client.session()
    for call in (session.append("early"), session.update([]), session.answer()):
        with refused(
            r"async with client\.session", reason="SESSION_NOT_OPEN", error=EventOrderError
        ):
            await call
    async with session:
        await session.answer()
        for call in (session.append("late"), session.update([]), session.answer()):
            with pytest.raises(EventOrderError, match="sealed"):
                await call
    with pytest.raises(EventOrderError):
        await session.__aenter__()


async def test_a_server_that_ends_without_an_answer_is_an_internal_error(client, router):
    async def rude(conversation: Conversation) -> None:
        await conversation.accept()
        await conversation.next()

    router.script = rude
    async with client.session() as session:
        with pytest.raises(InternalError) as caught:
            await session.answer()
    assert caught.value.reason == "STREAM_ENDED_EARLY"


async def test_a_failing_callback_fails_the_session(client, router):
    def broken(event: Event) -> None:
        if isinstance(event, Progress):
            raise ZeroDivisionError

    async def never_answers(conversation: Conversation) -> None:
        await conversation.accept()
        await conversation.next()
        await conversation.progress()
        await asyncio.Event().wait()

    router.script = never_answers
    async with client.session(on_event=broken) as session:
        await session.append("one")
        with pytest.raises(ZeroDivisionError):
            await session.answer()
    assert await router.ends.get() == "cancelled"


async def test_a_slow_reader_gets_every_token(client, router):
    texts = [f"{number} " for number in range(5000)]

    async def long(conversation: Conversation) -> None:
        await conversation.accept()
        await conversation.next()
        await conversation.answer(*texts)

    router.script = long
    async with client.session() as session:
        assert (await session.answer()).text == "".join(texts)


async def silent(conversation: Conversation) -> None:
    await conversation.accept()
    await fake_router.forever()


async def deaf(conversation: Conversation) -> None:
    await fake_router.forever()


@pytest.mark.parametrize(
    ("script", "seals", "unfinished"),
    [
        (deaf, False, "the session was not admitted"),
        (silent, False, "the session was not sealed"),
        (silent, True, "the answer did not end"),
    ],
)
async def test_a_session_that_is_out_of_time_says_what_did_not_happen(
    client, router, script, seals, unfinished
):
    async def use() -> None:
        async with client.session(timeout_s=1.5) as session:
            if seals:
                await session.answer()
            async for _ in session.events():
                pass

    router.script = script
    with pytest.raises(IdleTimeoutError) as caught:
        await use()
    assert caught.value.message == f"{unfinished} within the client's timeout_s of 1.5 s"
    assert caught.value.reason == "DEADLINE_EXCEEDED"


async def test_a_prompt_and_an_info_that_are_out_of_time_say_so(client, router):
    router.script = deaf
    with pytest.raises(IdleTimeoutError, match=r"the answer did not end within .* 0\.3 s"):
        await client.generate("x", timeout_s=0.3).answer()
    listening = socket.create_server(("127.0.0.1", 0))  # accepts, and says nothing
    with listening, pytest.raises(IdleTimeoutError, match=r"GetModelInfo got no answer within"):
        async with AsyncClient(f"127.0.0.1:{listening.getsockname()[1]}") as other:
            await other.model_info(timeout_s=0.3)


async def test_a_suffix_that_is_too_large_leaves_the_session_open(router):
    small = AsyncClient(router.address, max_message_bytes=10_000)
    async with small, small.session() as session:
        with pytest.raises(OverloadedError, match="10000 are allowed"):
            await session.answer("x" * 20_000)
        assert (await session.answer("short")).text == "one two three"


async def test_a_message_that_is_too_large_is_named_and_the_session_goes_on(router):
    async with AsyncClient(router.address, max_message_bytes=100_000) as client:
        async with client.session() as session:
            with pytest.raises(OverloadedError, match="100000 are allowed") as caught:
                await session.append("x" * 200_000)
            await session.append("x" * 90_000)
            await session.answer()
        with pytest.raises(OverloadedError):
            client.generate("x" * 200_000)
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
    assert caught.value.retry_after_s is None
    assert [request.sequence for request in router.received] == [1, 2, 3]


async def append_and_answer(session: AsyncSession, text: str) -> None:
    """The failure may come back on either call."""
    await session.append(text)
    await session.answer()


async def test_a_message_too_large_for_the_server_is_named(router):
    patient = AsyncClient(router.address, max_message_bytes=64 * 1024 * 1024)
    async with patient, patient.session() as session:
        with pytest.raises(OverloadedError, match="larger than max") as caught:
            await append_and_answer(session, "x" * 17 * 1024 * 1024)
    assert caught.value.reason == "MESSAGE_TOO_LARGE"


async def test_closing_the_client_ends_its_sessions(router):
    client = AsyncClient(router.address)
    async with client.session() as session:
        await client.close()
        with pytest.raises(Stream2LLMError):
            await session.answer()


async def test_six_sessions_share_a_channel(client):
    async def one(number: int) -> str:
        async with client.session() as session:
            await session.append(str(number))
            return (await session.answer()).text

    assert await asyncio.gather(*map(one, range(6))) == ["one two three"] * 6


async def test_nobody_listening_is_unavailable():
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(UnavailableError):
            async with client.session():
                pytest.fail("the server is not there")


async def test_infos(client: AsyncClient, router: FakeRouter):
    model = await client.model_info()
    assert (model.model, model.max_model_len, model.eos_token_ids) == ("fake", 8192, (2,))
    server = await client.server_info()
    assert server.sessions_by_phase == {"open": 2}
    assert server.workers[0].worker_id == "prefill-0"
    with pytest.raises(NotFoundError, match="no model 'other'"):
        await client.model_info("other")
