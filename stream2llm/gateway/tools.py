"""The tools of a request, and which of them the model has to call. Pure.

A call that has to come is a structured output: its JSON is read by `tool_calls.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from stream2llm.api import arguments
from stream2llm.api.errors import InvalidRequestError, UnsupportedError
from stream2llm.api.json_text import json_text
from stream2llm.api.structured_output import StructuredOutput
from stream2llm.gateway.answer_format import Strict

Json = dict[str, Any]
# Where a schema keeps the schemas that it refers to.
_DEFINITIONS = ("$defs", "definitions")


class Calls(StrEnum):
    """Which calls an answer has."""

    NONE = "none"
    # As many as the model decides on, beside text.
    AUTO = "auto"
    # At least one, of any tools.
    REQUIRED = "required"
    # One, of one tool.
    NAMED = "named"


class _Name(Strict):
    name: str = Field(min_length=1)


class _Function(_Name):
    description: str | None = None
    # A JSON schema.
    parameters: Json | None = None
    # A call that has to come keeps to the schema in any case.
    strict: bool | None = None


class ChatTool(Strict):
    """A tool of a chat."""

    type: Literal["function"]
    function: _Function

    @property
    def offered(self) -> Json:
        """In the form of a chat, as templates take it."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True)}


class ResponseTool(_Function):
    """A tool of a response."""

    type: Literal["function"]

    @property
    def offered(self) -> Json:
        """In the form of a chat, as templates take it."""
        function = self.model_dump(exclude_none=True, exclude={"type"})
        return {"type": "function", "function": function}


class ChatToolChoice(Strict):
    """The tool that a chat has to call."""

    type: Literal["function"]
    function: _Name

    @property
    def chosen(self) -> str:
        """Its name."""
        return self.function.name


class ResponseToolChoice(_Name):
    """The tool that a response has to call."""

    type: Literal["function"]

    @property
    def chosen(self) -> str:
        """Its name."""
        return self.name


ToolChoiceMode = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request, and what becomes of them."""

    # Those that the template writes, in the form of a chat.
    offered: tuple[Json, ...] = ()
    calls: Calls = Calls.NONE
    # The tool to call, where it is named.
    name: str = ""
    # Whether there may be several calls.
    is_parallel: bool = True

    def constraint(self) -> StructuredOutput | None:
        """What makes the whole answer calls; None: nothing does. Raises for schemas that exclude each other."""
        if self.calls in (Calls.NONE, Calls.AUTO):
            return None
        functions = [tool["function"] for tool in self.offered]
        if self.calls is Calls.NAMED:
            schema = next(_parameters(each) for each in functions if each["name"] == self.name)
        else:
            schema = _list_of_calls(functions, is_parallel=self.is_parallel)
        return StructuredOutput(json_schema=json_text(schema, "tools"))


def tool_use(
    tools: Sequence[ChatTool | ResponseTool] | None,
    choice: ToolChoiceMode | ChatToolChoice | ResponseToolChoice | None,
    *,
    is_parallel: bool | None,
) -> ToolUse:
    """Reads the parameters `tools`, `tool_choice` and `parallel_tool_calls` of either API."""
    offered = tuple(each.offered for each in tools or ())
    _check_functions([each["function"] for each in offered])
    use = ToolUse(offered, is_parallel=is_parallel is not False)
    if isinstance(choice, ChatToolChoice | ResponseToolChoice):
        return replace(use, calls=Calls.NAMED, name=_chosen(choice.chosen, offered))
    if choice == "required":
        if not offered:
            raise InvalidRequestError("tool_choice needs tools", field="tool_choice")
        return replace(use, calls=Calls.REQUIRED)
    return replace(use, calls=Calls.AUTO) if offered and choice != "none" else use


def _chosen(name: str, offered: Sequence[Json]) -> str:
    if all(each["function"]["name"] != name for each in offered):
        raise InvalidRequestError(
            f"tool_choice names {arguments.shown(name)}, which is none of tools",
            field="tool_choice",
        )
    return name


def _check_functions(functions: Sequence[Json]) -> None:
    names = [each["name"] for each in functions]
    if len(set(names)) < len(names):
        raise InvalidRequestError("tools has two functions of one name", field="tools")
    for index, each in enumerate(functions):
        if _parameters(each)["type"] != "object":
            field = f"tools[{index}]"
            raise InvalidRequestError(f"{field} has parameters that are no object", field=field)


def _parameters(function: Json) -> Json:
    return {"type": "object", **function.get("parameters", {})}


def _list_of_calls(functions: Sequence[Json], *, is_parallel: bool) -> Json:
    """The schema of a list of objects with `name` and `parameters`, in this order."""
    definitions: Json = {}
    calls = []
    for function in functions:
        parameters = _parameters(function)
        for key in _DEFINITIONS:
            _add_definitions(definitions, key, parameters.pop(key, {}))
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "enum": [function["name"]]},
                    "parameters": parameters,
                },
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema: Json = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, **definitions}
    return schema if is_parallel else {**schema, "maxItems": 1}


def _add_definitions(known: Json, key: str, more: Mapping[str, Any]) -> None:
    """References are from the root of the schema, where the definitions of all tools come together."""
    for name, schema in more.items():
        if known.setdefault(key, {}).setdefault(name, schema) != schema:
            raise UnsupportedError(
                f"tools define {arguments.shown(name)} differently in {key}: rename one of them",
                field="tools",
            )
