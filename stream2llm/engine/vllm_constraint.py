"""Translates what an answer must look like to vLLM's form."""

from __future__ import annotations

from vllm.sampling_params import StructuredOutputsParams

from stream2llm.api.structured_output import StructuredOutput


def vllm_constraint(output: StructuredOutput) -> StructuredOutputsParams:
    """Returns vLLM's form; raises ValueError for what vLLM refuses without a backend."""
    return StructuredOutputsParams(
        json=output.json_schema,
        json_object=output.json_object or None,
        regex=output.regex,
        choice=list(output.choices) or None,
        grammar=output.grammar,
        structural_tag=output.structural_tag,
    )
