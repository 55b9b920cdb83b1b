"""Structured outputs across the seam: token by token those of one plain vLLM engine."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from stream2llm.api.errors import InvalidRequestError
from stream2llm.client import AsyncClient, FinishReason, SamplingParameters, StructuredOutput
from stream2llm.gateway.reasoning_grammar import behind_reasoning
from stream2llm.gateway.vllm_answer import ReasoningEnd
from tests.reference_engine import ReferenceEngine
from tests.streams import Stream, collect, play

pytestmark = [pytest.mark.slow, pytest.mark.cluster("sensitive-1x1")]
STREAM = Stream("structured", (("append", ("a",)), ("update", ("b",))), {"a": 100, "b": 60})
GREEDY = SamplingParameters(max_tokens=24, temperature=0.0)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
# As ours has it, and as vLLM does.
CONSTRAINTS: list[tuple[StructuredOutput, dict[str, Any]]] = [
    (StructuredOutput.from_json_schema(SCHEMA), {"json": SCHEMA}),
    (StructuredOutput(regex="[a-f]{3}( [0-9]{2}){2}"), {"regex": "[a-f]{3}( [0-9]{2}){2}"}),
    (
        StructuredOutput(grammar='root ::= [a-c]+ "." | "(" root ")"'),
        {"grammar": 'root ::= [a-c]+ "." | "(" root ")"'},
    ),
    # The first token of an answer completes each of them.
    (StructuredOutput(choices=("7", "8")), {"choice": ["7", "8"]}),
]


@pytest.mark.parametrize(
    ("output", "vllm"), CONSTRAINTS, ids=["schema", "regex", "grammar", "choice"]
)
async def test_the_answer_is_that_of_one_engine(
    client: AsyncClient, reference: ReferenceEngine, output: StructuredOutput, vllm: dict[str, Any]
) -> None:
    outcome = await play(client, STREAM, dataclasses.replace(GREEDY, structured_output=output))
    expected = reference.answer(STREAM.prompt, 24, ignore_eos=False, structured_outputs=vllm)
    assert outcome.token_ids == expected
    if output.choices:
        assert outcome.text in output.choices
        assert outcome.finished.reason is FinishReason.STOP_TOKEN


async def test_a_constraint_begins_behind_the_reasoning(
    client: AsyncClient, reference: ReferenceEngine
) -> None:
    thought = reference.answer(STREAM.prompt, 4, ignore_eos=True)
    *_, end = thought
    asked = behind_reasoning(
        StructuredOutput(regex="[a-f]{3}"), ReasoningEnd("", end), has_to_come=True
    )
    outcome = await play(client, STREAM, dataclasses.replace(GREEDY, structured_output=asked))
    tag = {"structural_tag": asked.structural_tag}
    expected = reference.answer(STREAM.prompt, 24, ignore_eos=False, structured_outputs=tag)
    assert outcome.token_ids == expected
    num_thought = thought.index(end) + 1
    assert outcome.token_ids[:num_thought] == thought[:num_thought]
    assert outcome.finished.reason is FinishReason.STOP_TOKEN, "three letters end the answer"


async def test_what_cannot_be_compiled_is_refused_while_the_session_is_open(
    client: AsyncClient,
) -> None:
    output = StructuredOutput(json_schema=json.dumps({"type": "what?"}))
    sampling = dataclasses.replace(GREEDY, structured_output=output)
    async with client.session(prefix=STREAM.prefix, sampling=sampling) as session:
        with pytest.raises(InvalidRequestError, match=r"Unsupported type .what\?") as raised:
            _ = [event async for event in session.events()]
    assert raised.value.reason == "BAD_STRUCTURED_OUTPUT"
    assert raised.value.field == "sampling.structured_output"
    async with client.session(prefix=STREAM.prompt, sampling=GREEDY) as session:
        assert (await collect(session.seal())).token_ids, "the engines live"
