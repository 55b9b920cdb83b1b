"""What an answer must look like, checked before any engine sees it."""

from __future__ import annotations

import json

import pytest

from stream2llm.api import codec
from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.structured_output import (
    BAD_STRUCTURED_OUTPUT,
    MAX_CHOICES,
    MAX_CONSTRAINT_BYTES,
    StructuredOutput,
)
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.translate import message_of
from tests.refusals import refused

FIELD = "sampling.structured_output"


@pytest.mark.parametrize(
    "output",
    [
        StructuredOutput(json_schema='{"type": "object"}'),
        StructuredOutput(json_schema="true"),
        StructuredOutput(json_object=True),
        StructuredOutput(regex=" "),
        StructuredOutput(choices=("yes", "no")),
        StructuredOutput(grammar='root ::= "a"'),
        StructuredOutput(structural_tag="{}"),
        StructuredOutput(regex="é" * (MAX_CONSTRAINT_BYTES // 2)),
        StructuredOutput(regex="[a-z]{1,1000000}" * 20),
        StructuredOutput(regex="{1," + " " * 60_000),
        StructuredOutput(
            json_schema='{"maxLength": 1e400, "maxItems": NaN, "minItems": -5, "pattern": "a{3}"}'
        ),
        StructuredOutput(json_schema='{"properties": {"maxLength": {"type": "string"}}}'),
    ],
    ids=lambda output: str(codec.fields(output))[:30],
)
def test_one_constraint_passes(output: StructuredOutput) -> None:
    SamplingParameters(structured_output=output).validate(100)


@pytest.mark.parametrize(
    ("output", "field", "message"),
    [
        (StructuredOutput(), "", "sets nothing; exactly one of json_schema, json_object, regex"),
        (StructuredOutput(regex="a", json_object=True), "", "sets json_object, regex; exactly one"),
        (StructuredOutput(regex=""), ".regex", "is empty"),
        (StructuredOutput(choices=("a", "")), ".choices", "has an empty entry"),
        (StructuredOutput(choices=("a",) * (MAX_CHOICES + 1)), ".choices", "has 1001 entries; at most 1000"),
        (StructuredOutput(regex="é" * (MAX_CONSTRAINT_BYTES // 2 + 1)), ".regex", "has 65538 bytes; at most 65536"),
        (StructuredOutput(choices=("x" * (MAX_CONSTRAINT_BYTES // 2), "y" * 40_000)), ".choices", "has 72768 bytes"),
        (StructuredOutput(regex="a{1,1000}" * 21), ".regex", "add up to 21000, each counted up to"),
        (StructuredOutput(regex="a{0002000,}" * 21), ".regex", "add up to 21000"),
        (StructuredOutput(regex="a{" + "9" * 9000 + "}" + "b{1000 }" * 20), ".regex", "up to 21000"),
        (StructuredOutput(grammar="a ~ 3..1000 " * 21), ".grammar", "add up to 21000"),
        (StructuredOutput.from_json_schema({"anyOf": [{"maxLength": 5000}] * 21}), ".json_schema", "add up to 21000"),
        (
            StructuredOutput(
                json_schema='{"p": ["a{1000}"], "max\\u004cength": 1}'.replace(
                    "a{1000}", "a{1000}" * 20
                )
            ),
            ".json_schema",
            "add up to 20001",
        ),
        (StructuredOutput(json_schema="{"), ".json_schema", "is not JSON: "),
        (StructuredOutput(json_schema="[]"), ".json_schema", "is not a JSON object"),
        (StructuredOutput(json_schema="[" * 60_000), ".json_schema", "is nested too deeply"),
        (StructuredOutput(json_schema='{"not": ' * 970 + "{}" + "}" * 970), ".json_schema", "is nested too deeply"),
        (StructuredOutput(structural_tag="true"), ".structural_tag", "is not a JSON object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_is_named(output: StructuredOutput, field: str, message: str) -> None:
    with refused(message, field=f"{FIELD}{field}", reason=BAD_STRUCTURED_OUTPUT):
        SamplingParameters(structured_output=output).validate(100)


def test_a_schema_of_python_is_one_in_json() -> None:
    schema = {"type": "integer", "title": "größe"}
    output = StructuredOutput.from_json_schema(schema)
    output.validate()
    assert output.json_schema is not None
    assert json.loads(output.json_schema) == schema


def test_a_bare_choice_is_a_list_of_one() -> None:
    assert StructuredOutput(choices="yes").choices == ("yes",)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=r"choices is .*; it must be a list of texts"):
        StructuredOutput(choices={"yes", "no"})  # type: ignore[arg-type]


def test_the_client_sends_it_and_names_what_it_cannot_send() -> None:
    output = StructuredOutput(choices=("yes", "no"))
    sampling = SamplingParameters(structured_output=output)
    message = message_of(sampling)
    assert list(message.structured_output.choices) == ["yes", "no"]
    assert codec.decode(SamplingParameters, message) == sampling
    assert codec.decode(SamplingParameters, pb.SamplingParameters()).structured_output is None
    bad = SamplingParameters(structured_output=StructuredOutput(regex="\ud800"))
    with pytest.raises(InvalidRequestError, match=r"structured_output.regex cannot be encoded"):
        message_of(bad)
