"""The input of a response as chat messages, in which its texts stay what they are. Pure."""

from __future__ import annotations

from typing import Any

from stream2llm.api.errors import UnsupportedError
from stream2llm.gateway.requests import Message


def messages_of(given: str | list[Message], instructions: str | None = None) -> list[Message]:
    """The conversation that the input of a response stands for, after its instructions."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    turns: list[Message] = []
    if instructions is not None:
        turns.append({"role": "system", "content": instructions})
    for index, item in enumerate(items):
        _add(turns, item, f"input[{index}]")
    return turns


def _add(turns: list[Message], item: Message, field: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        content = _content(item.get("content"), f"{field}.content")
        _add_message(turns, item.get("role"), content)
    elif kind == "reasoning":
        turns.append({"role": "assistant", "content": None, "reasoning": _reasoning(item, field)})
    elif kind == "function_call":
        _add_call(turns, item)
    elif kind == "function_call_output":
        result = _content(item.get("output"), f"{field}.output")
        turns.append({"role": "tool", "content": result, "tool_call_id": item.get("call_id")})
    else:
        raise UnsupportedError(
            f"{field} is a {kind!r}; only messages, reasoning, function calls and their outputs are"
            " supported",
            field=field,
        )


def _add_message(turns: list[Message], role: Any, content: Any) -> None:
    """What the assistant says after its reasoning is of the same turn."""
    if role == "assistant" and turns and _is_reasoning_alone(turns[-1]):
        turns[-1]["content"] = content
    else:
        turns.append({"role": role, "content": content})


def _is_reasoning_alone(turn: Message) -> bool:
    return (
        turn.get("reasoning") is not None and turn["content"] is None and "tool_calls" not in turn
    )


def _add_call(turns: list[Message], item: Message) -> None:
    """Calls in a row, and those after a message or reasoning of the assistant, are of one turn."""
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    call = {"id": item.get("call_id"), "type": "function", "function": function}
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": None})
    turns[-1].setdefault("tool_calls", []).append(call)


def _reasoning(item: Message, field: str) -> str:
    """Its text; raises where it has only a summary, or is encrypted."""
    content = item.get("content")
    texts = [
        part.get("text") if isinstance(part, dict) else None
        for part in (content if isinstance(content, list) else [])
    ]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UnsupportedError(f"{field} is reasoning without its text in content", field=field)
    return "".join(map(str, texts))


def _content(content: Any, field: str) -> Any:
    if not isinstance(content, list):
        return content
    return [_part_of(part, f"{field}[{index}]") for index, part in enumerate(content)]


def _part_of(part: Any, field: str) -> Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("input_text", "output_text", "text"):
        raise UnsupportedError(
            f"{field} is a part of type {kind!r}; only text is supported", field=field
        )
    return {"type": "text", "text": part.get("text")}
