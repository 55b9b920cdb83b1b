"""The grammar of an answer that begins with reasoning: any tokens up to its end, then the constraint.

It is one grammar for both parts. So engines need not know where reasoning ends, and a session
that goes on elsewhere in the middle of it needs no more than its tokens, as every other one.

Imports XGrammar and vLLM, which takes seconds.
"""

from __future__ import annotations

import json

from vllm.parser.abstract_parser import structured_outputs_to_format
from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features
from xgrammar import StructuralTag
from xgrammar.structural_tag import (
    AnyTextFormat,
    AnyTokensFormat,
    OptionalFormat,
    SequenceFormat,
    TagFormat,
    TokenFormat,
)

from stream2llm.api.structured_output import StructuredOutput
from stream2llm.engine.vllm_constraint import vllm_constraint
from stream2llm.gateway.vllm_answer import ReasoningEnd

Format = SequenceFormat | TagFormat | OptionalFormat


def behind_reasoning(
    constraint: StructuredOutput, end: ReasoningEnd, *, has_to_come: bool
) -> StructuredOutput:
    """The constraint from the end of the reasoning on.

    If that `has_to_come`, there is no stop token before it; else the constraint may also hold
    from the first token on.

    Raises InvalidRequestError for a constraint that no engine takes, and ValueError for one that
    vLLM cannot put behind something else.
    """
    constraint.validate()
    _check_schema(constraint)
    asked = structured_outputs_to_format(vllm_constraint(constraint))
    thought = _reasoning(end) if has_to_come else OptionalFormat(content=_reasoning(end))
    whole = StructuralTag(format=SequenceFormat(elements=[thought, asked]))
    return StructuredOutput(structural_tag=whole.model_dump_json())


def _check_schema(constraint: StructuredOutput) -> None:
    """What vLLM checks in a schema alone, and not in a part of a structural tag."""
    schema = json.loads(constraint.json_schema or "{}")
    if isinstance(schema, dict) and has_xgrammar_unsupported_json_features(schema):
        raise ValueError("the JSON schema has features that xgrammar does not support")


def _reasoning(end: ReasoningEnd) -> Format:
    if end.token_id is None:
        return TagFormat(begin="", content=AnyTextFormat(), end=end.text)
    thought = AnyTokensFormat(exclude_tokens=[end.token_id])
    return SequenceFormat(elements=[thought, TokenFormat(token=end.token_id)])
