"""The grammar of an answer that begins with reasoning: any tokens up to its end, then the constraint.

It is one grammar for both parts. So engines need not know where reasoning ends, and a session
that goes on elsewhere in the middle of it needs no more than its tokens, as every other one.

Imports XGrammar and vLLM, which takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm.parser.abstract_parser import structured_outputs_to_format
from xgrammar import StructuralTag
from xgrammar.structural_tag import (
    AnyTextFormat,
    AnyTokensFormat,
    SequenceFormat,
    TagFormat,
    TokenFormat,
)

from stream2llm.api.structured_output import StructuredOutput
from stream2llm.engine.vllm_constraint import vllm_constraint

Format = SequenceFormat | TagFormat


@dataclass(frozen=True, slots=True)
class ReasoningEnd:
    """What a model writes where its reasoning ends."""

    text: str
    # None: the text is no token of its own.
    token_id: int | None


def behind_reasoning(constraint: StructuredOutput, end: ReasoningEnd) -> StructuredOutput:
    """The constraint from the end of the reasoning on, which has to come: no stop token before it.

    Raises InvalidRequestError for a constraint that no engine takes, and ValueError for one that
    vLLM cannot put behind something else.
    """
    constraint.validate()
    asked = structured_outputs_to_format(vllm_constraint(constraint))
    whole = StructuralTag(format=SequenceFormat(elements=[_reasoning(end), asked]))
    return StructuredOutput(structural_tag=whole.model_dump_json())


def _reasoning(end: ReasoningEnd) -> Format:
    if end.token_id is None:
        return TagFormat(begin="", content=AnyTextFormat(), end=end.text)
    thought = AnyTokensFormat(exclude_tokens=[end.token_id])
    return SequenceFormat(elements=[thought, TokenFormat(token=end.token_id)])
