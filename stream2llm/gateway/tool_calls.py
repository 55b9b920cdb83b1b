"""The calls in an answer that has to be calls, piece by piece as its text comes. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Protocol

from stream2llm.gateway.tools import Calls, ToolUse

# What stands before the arguments of a call in a list of them.
_HEAD = re.compile(
    r'\s*(?:\[|\}\s*,)\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"parameters"\s*:\s*(?=\{)'
)


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of one call."""

    # From 0, in the answer.
    index: int
    # In the first delta of a call; None in the others.
    name: str | None
    # More of the text of a JSON object.
    arguments: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call; of an answer that was cut off, its arguments may be too."""

    name: str
    arguments: str


class CallReader(Protocol):
    """Reads one answer."""

    def feed(self, text: str) -> list[CallDelta]:
        """Takes the next text of the answer."""


def reader_for(use: ToolUse) -> CallReader | None:
    """What reads an answer that is calls from its beginning; None: it need not be."""
    if use.calls is Calls.NAMED:
        return _OneCall(use.name)
    return _ListOfCalls() if use.calls is Calls.REQUIRED else None


def gathered(calls: list[Call], deltas: list[CallDelta]) -> list[Call]:
    """The calls so far, and what comes to them."""
    calls = list(calls)
    for delta in deltas:
        if delta.name is not None:
            calls.append(Call(delta.name, ""))
        call = calls[delta.index]
        calls[delta.index] = replace(call, arguments=call.arguments + delta.arguments)
    return calls


class _OneCall:
    """The whole answer is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def feed(self, text: str) -> list[CallDelta]:
        if not text:
            return []
        name, self._name = self._name, None
        return [CallDelta(0, name, text)]


class _ListOfCalls:
    """The answer is a list of objects with `name` and `parameters`, in this order."""

    def __init__(self) -> None:
        # The part of it that stands before the next arguments, so far.
        self._head = ""
        self._arguments: _ObjectScanner | None = None
        self._num_calls = 0

    def feed(self, text: str) -> list[CallDelta]:
        deltas = []
        while text:
            if self._arguments is None:
                self._head += text
                head = _HEAD.match(self._head)
                if head is None:
                    break
                text, self._head = self._head[head.end() :], ""
                self._arguments = _ObjectScanner()
                deltas.append(CallDelta(self._num_calls, json.loads(head[1]), ""))
                self._num_calls += 1
            else:
                end = self._arguments.end_in(text)
                deltas.append(CallDelta(self._num_calls - 1, None, text[:end]))
                text = text[end:]
                if self._arguments.has_ended:
                    self._arguments = None
        return deltas


class _ObjectScanner:
    """Finds the end of a JSON object whose text comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.has_ended = False

    def end_in(self, text: str) -> int:
        """The number of characters of the next piece that are of the object."""
        for index, character in enumerate(text):
            if self._is_in_string:
                self._in_string(character)
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.has_ended = True
                    return index + 1
        return len(text)

    def _in_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_in_string = False
