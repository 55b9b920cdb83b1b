"""Limits of one session on this worker's engine. Pure."""

from __future__ import annotations

from typing import Protocol

from stream2llm.api.errors import InvalidRequestError


class Capacity(Protocol):
    """The sizes of an engine that limit a session."""

    @property
    def max_model_len(self) -> int: ...
    @property
    def num_kv_blocks(self) -> int: ...
    @property
    def block_size(self) -> int: ...


def check_context(num_tokens: int, capacity: Capacity) -> None:
    """Raises InvalidRequestError when the engine could never compute `num_tokens` tokens.

    vLLM checks the length of each request, but not of a sequence that grows by events;
    and a session that needs more blocks than there are would wait for ever, with all
    others evicted.
    """
    if num_tokens >= capacity.max_model_len:
        raise _too_long(
            f"the context has {num_tokens} tokens; with one for the answer the model takes at"
            f" most {capacity.max_model_len} (max_model_len)"
        )
    num_blocks = -(-num_tokens // capacity.block_size)
    if num_blocks > capacity.num_kv_blocks:
        raise _too_long(
            f"the context has {num_tokens} tokens and needs {num_blocks} KV blocks of"
            f" {capacity.block_size} tokens; this worker's KV memory has"
            f" {capacity.num_kv_blocks} in all"
        )


def check_answer(num_tokens: int, num_to_sample: int, capacity: Capacity) -> None:
    """Raises InvalidRequestError when an answer behind `num_tokens` tokens could never end here.

    The last of its `num_to_sample` tokens needs no KV.
    """
    if num_to_sample < 1:
        raise InvalidRequestError(
            "the answer has as many tokens already as it may have", field="seal.answer_max_tokens"
        )
    num_kv_tokens = capacity.num_kv_blocks * capacity.block_size
    if num_tokens + num_to_sample - 1 > num_kv_tokens:
        raise InvalidRequestError(
            f"context and answer need KV memory for {num_tokens + num_to_sample - 1} tokens; this"
            f" worker has it for {num_kv_tokens}",
            reason="CONTEXT_TOO_LONG",
            field="seal.answer_max_tokens",
        )


def _too_long(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="CONTEXT_TOO_LONG", field="splice.token_ids")
