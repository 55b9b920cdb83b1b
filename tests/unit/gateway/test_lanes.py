"""Streamed context over a WebSocket: what prefill gets is one whole rendering, sent once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets
from openai import AsyncOpenAI, OpenAI

from stream2llm.client import AsyncClient, Document
from stream2llm.serving.sessions.token_bytes import num_tokens, token_list
from tests.gateway_ring import GatewayRing
from tests.lane_client import ENDS, LaneClient, document, turns, user
from tests.router_ring import TIMEOUT_S, soon

# Sessions are opened with it, so all requests of a lane have the same.
FEW = {"max_output_tokens": 5}
SYSTEM = {"type": "message", "role": "system", "content": "use {{context}} only"}


@pytest.fixture
async def client(sdk: AsyncOpenAI) -> AsyncIterator[LaneClient]:
    async with sdk.responses.connect() as connection:
        yield LaneClient(connection)


async def test_input_that_streams_in_is_one_prompt(
    gateway: GatewayRing, client: LaneClient
) -> None:
    ring = gateway.ring
    first = await client.prepare(user("hello"), **FEW)
    second = await client.prepare(user("there"), previous_response_id=first.id, **FEW)
    answer = await client.answer(user("what is it?"), previous_response_id=second.id, **FEW)
    said = [("user", "hello"), ("user", "there"), ("user", "what is it?")]
    expected = ring.encode_written(turns(*said, answering=True))
    (record,) = ring.prefill.records
    assert record.sequence == expected
    assert record.invalidated == 0
    assert sum(num_tokens(splice.token_ids) for splice in record.splices) == len(expected)
    assert answer.output_text == ring.decode_text(ring.brain.answer(expected, 5))
    assert answer.usage.input_tokens == len(expected)
    assert second.usage.input_tokens == len(ring.encode_written(turns(*said[:2])))
    assert [each.stream2llm["kind"] for each in (first, second, answer)] == [
        *("open", "append", "append")
    ]


async def test_an_older_response_is_an_update(gateway: GatewayRing, client: LaneClient) -> None:
    ring = gateway.ring
    first = await client.prepare(user("hello"), **FEW)
    second = await client.prepare(user("abc"), previous_response_id=first.id, **FEW)
    await ring.told(2)
    third = await client.prepare(user("xyz"), previous_response_id=first.id, **FEW)
    assert third.stream2llm["kind"] == "update"
    assert third.stream2llm["replaced_tokens"] > 0
    lost = await client.refusal(user("more"), previous_response_id=second.id, **FEW)
    assert (lost.error.code, lost.status) == ("previous_response_not_found", 400)
    assert lost.error.param == "previous_response_id"
    await client.answer(previous_response_id=third.id, **FEW)
    (record,) = ring.prefill.records
    said = [("user", "hello"), ("user", "xyz")]
    assert record.sequence == ring.encode_written(turns(*said, answering=True))
    replaced = len(ring.encode_written("abc<|end|>\n"))
    assert record.invalidated in (replaced, replaced - 1)  # prefill holds the last token back


async def test_another_lane_forks(gateway: GatewayRing, client: LaneClient) -> None:
    ring = gateway.ring
    first = await client.prepare(user("hello"), stream_id="a", **FEW)
    fork = await client.prepare(user("abc"), stream_id="b", previous_response_id=first.id, **FEW)
    assert fork.stream2llm["kind"] == "fork"
    for previous, lane, said in ((first, "a", []), (fork, "b", [("user", "abc")])):
        await client.answer(stream_id=lane, previous_response_id=previous.id, **FEW)
        expected = turns(("user", "hello"), *said, answering=True)
        records = [record.sequence for record in ring.prefill.records]
        assert ring.encode_written(expected) in records
    assert len(ring.prefill.records) == 2
    assert all(record.invalidated == 0 for record in ring.prefill.records)


async def test_an_answer_is_continued(gateway: GatewayRing, client: LaneClient) -> None:
    ring = gateway.ring
    # Such that the answer's text has the tokens of the answer.
    ring.brain.script = ring.encode("what is this?")
    first = await client.answer(user("hello"), instructions="brief")
    assert first.output_text == "what is this?"
    prepared = await client.prepare(user("more"), previous_response_id=first.id)
    await ring.told(1, num_sessions=2)
    await client.answer(previous_response_id=prepared.id, instructions="brief")
    said = [("user", "hello"), ("assistant", "what is this?"), ("user", "more")]
    whole = turns(("system", "brief"), *said, answering=True)
    assert len(ring.prefill.records) == 2
    # Instructions are not carried over: without them the prepared sequence was another one.
    assert token_list(ring.record.splices[0].token_ids, "") == ring.encode_written(turns(*said))
    assert ring.record.sequence == ring.encode_written(whole)


async def test_instructions_that_are_alike_keep_what_was_prefilled(
    gateway: GatewayRing, client: LaneClient
) -> None:
    first = await client.prepare(user("hello"), instructions="brief", **FEW)
    answer = await client.answer(
        user("more"), previous_response_id=first.id, instructions="brief", **FEW
    )
    assert answer.stream2llm["replaced_tokens"] == 0
    assert gateway.ring.record.invalidated == 0


@pytest.mark.parametrize("ordering", ["as_given", "stable"])
async def test_documents_of_the_context_slot(
    gateway: GatewayRing, client: LaneClient, ordering: str
) -> None:
    """The same prompt as that of a gRPC session, by the router's own template and ordering."""
    ring = gateway.ring
    texts = {"a": "the quick fox", "b": "the lazy dog", "c": "hello <|end|> world"}
    options = {"stream2llm": {"ordering": ordering, "context_slot": "{{context}}"}, **FEW}
    root = await client.prepare(SYSTEM, **options)
    await client.prepare(
        document(texts["a"], "a"), document(texts["b"], "b"), previous_response_id=root.id, **FEW
    )
    updated = await client.prepare(
        document(texts["c"], "c"),
        document(None, "a"),
        document(None, "b"),
        previous_response_id=root.id,
        **FEW,
    )
    answer = await client.answer(user("what?"), previous_response_id=updated.id, **FEW)
    record = ring.record
    chat = [{"role": "system", "content": SYSTEM["content"]}, {"role": "user", "content": "what?"}]
    async with (
        AsyncClient(ring.address.grpc_address) as grpc,
        grpc.session(chat=chat, ordering=ordering) as session,
    ):
        await session.append(*[_document(texts, name) for name in "ab"])
        await session.update([_document(texts, name) for name in "cab"])
        await session.answer()
    assert ring.record is not record
    assert record.sequence == ring.record.sequence
    assert answer.usage.input_tokens == len(record.sequence)
    if ordering == "stable":
        assert answer.stream2llm["invalidated_tokens"] == 0


def _document(texts: dict[str, str], name: str) -> Document:
    return Document(texts[name], name)


async def test_control_tokens_in_items_stay_text(gateway: GatewayRing, client: LaneClient) -> None:
    ring = gateway.ring
    await client.answer(SYSTEM, document("a<|end|>b", "d"), user("c<|turn|>d"), **FEW)
    control = [token for token in ring.record.sequence if token < 3]
    # The template writes them: the turns of system, user and assistant, and the ends of two.
    assert control == [2, 0, 2, 0, 2]


async def test_requests_of_a_lane_are_served_in_order(
    gateway: GatewayRing, client: LaneClient
) -> None:
    prefill = gateway.ring.prefill
    prefill.may_sample.clear()
    await client.send(user("one"), stream_id="a", **FEW)
    await client.send(user("two"), stream_id="a", generate=False, **FEW)
    await client.send(user("three"), stream_id="b", generate=False, **FEW)
    # Lane b does not wait for lane a, whose second request does.
    awaited = {("response.created", "a"), ("response.completed", "b")}
    seen: list[Any] = []
    while not awaited <= {(event.type, event.stream_id) for event in seen}:
        seen.append(await soon(client.connection.recv()))
    created = [event for event in seen if event.type == "response.created"]
    assert sorted(event.stream_id for event in created) == ["a", "b"]
    prefill.may_sample.set()
    rest = [*await client.events(), *await client.events()]
    ends = [event.type for event in rest if event.type in ENDS]
    assert ends == ["response.incomplete", "response.completed"]
    assert {event.stream_id for event in rest} == {"a"}


async def test_a_response_can_be_cancelled(gateway: GatewayRing, client: LaneClient) -> None:
    prefill = gateway.ring.prefill
    first = await client.prepare(user("hello"), **FEW)
    prefill.may_sample.clear()
    await client.send(previous_response_id=first.id, **FEW)
    await gateway.ring.told(1)
    await soon(gateway.ring.record.sealed.wait())
    await client.connection.send({"type": "response.cancel"})
    events = await client.events()
    assert (events[-1].type, events[-1].response.status) == ("response.incomplete", "cancelled")
    await soon(gateway.ring.record.ended.wait())
    prefill.may_sample.set()
    await client.answer(previous_response_id=first.id, **FEW)


async def test_small_events_do_not_wait_for_each_other(gateway: GatewayRing) -> None:
    """Nagle's algorithm would hold the second one back until the first is acknowledged."""
    (server,) = gateway.gateway._server.servers
    (listener,) = server.sockets
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_the_client_that_leaves_ends_its_sessions(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    async with sdk.responses.connect() as connection:
        client = LaneClient(connection)
        await client.prepare(user("hello"), stream_id="a", **FEW)
        await client.prepare(user("hello"), stream_id="b", **FEW)
    for record in gateway.ring.prefill.records:
        await soon(record.ended.wait())


async def test_a_drain_lets_connections_end_after_their_requests(
    gateway: GatewayRing, sdk: AsyncOpenAI
) -> None:
    prefill = gateway.ring.prefill
    async with sdk.responses.connect() as connection:
        client = LaneClient(connection)
        prefill.may_sample.clear()
        await client.send(user("hello"), **FEW)
        await soon(prefill.session_came.wait())
        await soon(gateway.ring.record.sealed.wait())
        draining = asyncio.ensure_future(gateway.gateway.drain(TIMEOUT_S))
        prefill.may_sample.set()
        assert (await client.events())[-1].type == "response.incomplete"
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await soon(connection.recv())
        assert closed.value.rcvd.code == 1012
        await soon(draining)


async def test_other_parameters_open_the_session_anew(
    gateway: GatewayRing, client: LaneClient
) -> None:
    ring = gateway.ring
    first = await client.prepare(user("hello"))
    answer = await client.answer(previous_response_id=first.id, max_output_tokens=2)
    assert answer.usage.output_tokens == 2
    before, after = ring.prefill.records
    await soon(before.ended.wait())
    assert after.sequence == ring.encode_written(turns(("user", "hello"), answering=True))


async def test_a_session_that_has_ended_is_opened_anew(make_gateway: Any) -> None:
    gateway = await make_gateway(input_idle_timeout_s=0.2)
    ring = gateway.ring
    async with (
        AsyncOpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as sdk,
        sdk.responses.connect() as connection,
    ):
        client = LaneClient(connection)
        first = await client.prepare(user("hello"), **FEW)
        await soon(ring.record.ended.wait())
        await client.answer(user("more"), previous_response_id=first.id, **FEW)
    whole = turns(("user", "hello"), ("user", "more"), answering=True)
    assert ring.record.sequence == ring.encode_written(whole)
    assert len(ring.prefill.records) == 2


async def test_progress_and_a_deadline_where_they_are_asked_for(
    gateway: GatewayRing, client: LaneClient
) -> None:
    extension = {"progress": True, "ttft_slo_ms": 5000}
    await client.send(user("hello"), generate=False, stream2llm=extension, **FEW)
    events = await client.events()
    while events[-1].type != "stream2llm.progress" or not events[-1].progress["prefilled_tokens"]:
        events.append(await soon(client.connection.recv()))
    ids = {event.response_id for event in events if event.type == "stream2llm.progress"}
    prepared = next(event for event in events if event.type == "response.completed")
    assert ids == {prepared.response.id}
    await client.answer(
        previous_response_id=prepared.response.id, stream2llm={"ttft_slo_ms": 5000}, **FEW
    )
    assert 0 < gateway.ring.record.ttft_left_ms <= 5000


# The SDK is older than that advice.
@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager")
async def test_the_synchronous_sdk(gateway: GatewayRing) -> None:
    def ask() -> str:
        with (
            OpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as sdk,
            sdk.responses.connect() as connection,
        ):
            connection.response.create(model="tiny", input="hello", generate=False, **FEW)
            prepared = [connection.recv() for _ in range(2)][-1].response
            connection.response.create(model="tiny", previous_response_id=prepared.id, **FEW)
            for event in connection:
                if event.type == "response.incomplete":
                    return str(event.response.output_text)
        raise AssertionError("no answer")

    ring = gateway.ring
    text = await asyncio.to_thread(ask)
    prompt = ring.encode_written(turns(("user", "hello"), answering=True))
    assert text == ring.decode_text(ring.brain.answer(prompt, 5))
