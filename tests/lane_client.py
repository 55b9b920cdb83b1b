"""OpenAI's SDK over a WebSocket, for tests of streamed context."""

from __future__ import annotations

from typing import Any

PREPARED = ["response.created", "response.completed"]
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


def user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def document(text: str | None, document_id: str = "") -> dict[str, Any]:
    item = {"type": "message", "role": "user", "stream2llm": {"document": {"id": document_id}}}
    return item if text is None else {**item, "content": text}


def turns(*said: tuple[str, str], answering: bool = False) -> str:
    """The tiny model's template."""
    text = "".join(f"<|turn|>{role}\n{content}<|end|>\n" for role, content in said)
    return text + ("<|turn|>assistant\n" if answering else "")


class LaneClient:
    """One connection, whose requests wait for their responses."""

    def __init__(self, connection: Any, model: str = "tiny") -> None:
        self.connection = connection
        self._model = model

    async def send(self, *items: Any, **fields: Any) -> None:
        event = {"type": "response.create", "model": self._model, "input": list(items), **fields}
        await self.connection.send(event)

    async def create(self, *items: Any, **fields: Any) -> list[Any]:
        await self.send(*items, **fields)
        return await self.events()

    async def events(self) -> list[Any]:
        """The events up to the one that ends a response."""
        events = []
        while True:
            events.append(await self.connection.recv())
            if events[-1].type in ENDS:
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
