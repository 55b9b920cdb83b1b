"""What an answer is asked to look like, in OpenAI's forms and in vLLM's, as a router takes it. Pure."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.json_text import json_text
from stream2llm.api.structured_output import StructuredOutput

Json = dict[str, Any]


class Strict(BaseModel):
    """A part of a request that takes no other names and no other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Text(Strict):
    """Free text."""

    type: Literal["text"]

    def constraint(self) -> StructuredOutput | None:
        """Nothing is asked for."""
        return None


class JsonObject(Strict):
    """Any JSON object."""

    type: Literal["json_object"]

    def constraint(self) -> StructuredOutput | None:
        """A JSON object."""
        return StructuredOutput(json_object=True)


class _Schema(Strict):
    """A JSON schema, which is kept to whether it is `strict` or not. Its name has no effect."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    # No attribute `schema`, which pydantic's models have.
    given: Json = Field(alias="schema")

    @field_validator("name", "description")
    @classmethod
    def _can_be_sent_back(cls, given: str | None) -> str | None:
        (given or "").encode()  # a ValueError for half of a surrogate pair
        return given


class JsonSchema(Strict):
    """`response_format` of a chat with a schema."""

    type: Literal["json_schema"]
    json_schema: _Schema

    def constraint(self) -> StructuredOutput | None:
        """Its schema."""
        return StructuredOutput(json_schema=json_text(self.json_schema.given, "response_format"))


class ResponseSchema(_Schema):
    """`text.format` of a response with a schema."""

    type: Literal["json_schema"]

    def constraint(self) -> StructuredOutput | None:
        """Its schema."""
        return StructuredOutput(json_schema=json_text(self.given, "text.format"))


class TextOptions(Strict):
    """`text` of a response."""

    format: Text | JsonObject | ResponseSchema | None = Field(default=None, discriminator="type")


class StructuredOutputs(Strict):
    """vLLM's own form; exactly one of them is given."""

    # A schema, or its text.
    json_schema: Json | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: str | None = None

    def constraint(self) -> StructuredOutput:
        """What is given; that it is one alone is the router's to check."""
        schema = self.json_schema
        return StructuredOutput(
            json_schema=json_text(schema, "structured_outputs.json")
            if isinstance(schema, dict)
            else schema,
            json_object=bool(self.json_object),
            regex=self.regex,
            choices=tuple(self.choice or ()),
            grammar=self.grammar,
            structural_tag=self.structural_tag,
        )


ResponseFormat = Text | JsonObject | JsonSchema


class _Asked(Protocol):
    def constraint(self) -> StructuredOutput | None: ...


def constraint_of(asked: _Asked | None) -> StructuredOutput | None:
    """The constraint of a parameter that may not be given."""
    return None if asked is None else asked.constraint()


def the_one(given: dict[str, StructuredOutput | None]) -> StructuredOutput | None:
    """The constraint of a request, by the parameter; raises where several parameters have one."""
    found = {name: each for name, each in given.items() if each is not None}
    if len(found) > 1:
        *_, last = found
        raise InvalidRequestError(f"{' and '.join(found)} exclude each other", field=last)
    return next(iter(found.values()), None)
