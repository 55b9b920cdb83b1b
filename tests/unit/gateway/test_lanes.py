"""Streamed context over a WebSocket, with OpenAI's own SDK: what prefill gets is one whole rendering."""

from __future__ import annotations

from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.gateway_ring import GatewayRing

pytestmark = pytest.mark.unit

PREPARED = ["response.created", "response.completed"]


def user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def document(text: str | None, document_id: str = "") -> dict[str, Any]:
    item = {"type": "message", "role": "user", "stream2llm": {"document": {"id": document_id}}}
    return item if text is None else {**item, "content": text}


def turns(*said: tuple[str, str], answering: bool = False) -> str:
    text = "".join(f"<|turn|>{role}\n{content}<|end|>\n" for role, content in said)
    return text + ("<|turn|>assistant\n" if answering else "")


class Client:
    """One connection, whose requests wait for their responses."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def create(self, *items: Any, **fields: Any) -> list[Any]:
        event = {"type": "response.create", "model": "tiny", "input": list(items), **fields}
        await self.connection.send(event)
        return await self.events()

    async def events(self) -> list[Any]:
        """The events up to the one that ends a response."""
        events = []
        while True:
            events.append(await self.connection.recv())
            kind = events[-1].type
            if kind in ("response.completed", "response.incomplete", "response.failed", "error"):
                return events

    async def prepare(self, *items: Any, **fields: Any) -> Any:
        events = await self.create(*items, generate=False, **fields)
        assert [event.type for event in events] == PREPARED, events
        assert events[-1].response.output == []
        return events[-1].response

    async def answer(self, *items: Any, **fields: Any) -> Any:
        events = await self.create(*items, **fields)
        assert events[-1].type in ("response.completed", "response.incomplete"), events
        return events[-1].response

    async def refusal(self, *items: Any, **fields: Any) -> Any:
        (event,) = await self.create(*items, **fields)
        assert event.type == "error"
        return event


async def test_input_that_streams_in_is_one_prompt(gateway: GatewayRing, sdk: AsyncOpenAI) -> None:
    ring = gateway.ring
    async with sdk.responses.connect() as connection:
        client = Client(connection)
        first = await client.prepare(user("hello"), max_output_tokens=5)
        second = await client.prepare(
            user("there"), previous_response_id=first.id, max_output_tokens=5
        )
        answer = await client.answer(
            user("what is this?"), previous_response_id=second.id, max_output_tokens=5
        )
    said = [("user", "hello"), ("user", "there"), ("user", "what is this?")]
    expected = ring.encode_written(turns(*said, answering=True))
    (record,) = ring.prefill.records
    assert record.sequence == expected
    assert record.invalidated == 0
    assert answer.output_text == ring.decode_text(ring.brain.answer(expected, 5))
    assert answer.usage.input_tokens == len(expected)
    assert second.usage.input_tokens == len(ring.encode_written(turns(*said[:2])))
