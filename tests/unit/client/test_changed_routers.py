"""Sessions that outlive all routers that their client knew when they began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.client import AsyncClient, Event, Finished, TokenDelta
from tests import fake_router
from tests.fake_router import Conversation, FakeRouter
from tests.name_server import a_name_server
from tests.polling import eventually

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_test_hangs")]


async def stops_in_the_answer(conversation: Conversation) -> None:
    await conversation.accept()
    await conversation.next()
    await conversation.answer_begins("one")
    await fake_router.forever()


async def goes_on(conversation: Conversation) -> None:
    await conversation.accept()
    await conversation.next()
    await conversation.answer(" two", " three")


async def next_text(answer: AsyncIterator[Event]) -> str:
    while not isinstance(event := await anext(answer), TokenDelta):
        pass
    return event.text


async def rest_of(answer: AsyncIterator[Event]) -> str:
    events = [event async for event in answer]
    assert isinstance(events[-1], Finished)
    return "".join(event.text for event in events if isinstance(event, TokenDelta))


async def test_a_name_that_stands_for_other_addresses_than_before() -> None:
    async with a_name_server() as names, FakeRouter(stops_in_the_answer) as first:
        names.addresses = ["127.0.0.1"]
        port = int(first.address.rpartition(":")[2])
        async with (
            AsyncClient(names.target(port)) as client,
            client.session(prefix="a") as session,
        ):
            answer = aiter(session.seal())
            assert await next_text(answer) == "one"
            async with FakeRouter(goes_on, "127.0.0.2", port) as second:
                names.addresses = ["127.0.0.2"]
                await first.stop()
                assert await rest_of(answer) == " two three"
    assert list(second.received[0].open.resumed.token_ids) == [0]


async def test_addresses_that_a_program_gives_later() -> None:
    async with (
        FakeRouter(stops_in_the_answer) as first,
        FakeRouter(goes_on) as second,
        AsyncClient(first.address) as client,
        client.session(prefix="a") as session,
    ):
        answer = aiter(session.seal())
        assert await next_text(answer) == "one"
        client.set_routers([second.address])
        await first.stop()
        assert await rest_of(answer) == " two three"
    assert list(second.received[0].open.resumed.token_ids) == [0]


async def test_what_is_under_way_stays_and_its_connection_closes_behind_it() -> None:
    may_end = asyncio.Event()

    async def waits(conversation: Conversation) -> None:
        await conversation.accept()
        await conversation.next()
        await conversation.answer_begins("one")
        await may_end.wait()
        await conversation.answer(" two")

    async with (
        FakeRouter(waits) as first,
        FakeRouter() as second,
        AsyncClient(first.address) as client,
    ):
        connections = client._connections
        (connection,) = connections._connections.values()
        async with client.session(prefix="a") as session:
            answer = aiter(session.seal())
            assert await next_text(answer) == "one"
            client.set_routers([second.address, second.address])
            assert (await client.generate("text").answer()).text == "one two three"
            may_end.set()
            assert await rest_of(answer) == " two"

        async def is_closed() -> bool:
            return connection._closed and not connections._retired

        await eventually(is_closed, bool)
        client.set_routers(first.address)
        client.set_routers([first.address, second.address])
        assert len(connections.routers) == 2
    assert not second.conversations


async def test_a_client_has_at_least_one_router() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequestError):
            client.set_routers([])
        assert client.address == "127.0.0.1:1"
