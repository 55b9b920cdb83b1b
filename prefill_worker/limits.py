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


def _too_long(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="CONTEXT_TOO_LONG", field="splice.token_ids")
