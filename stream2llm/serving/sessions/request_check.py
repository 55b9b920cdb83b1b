"""Checks the contents of an RPC between router and workers before it reaches an engine. Pure.

vLLM trusts its front end: a token id beyond the vocabulary in an event, or an unknown
sampling parameter, ends the engine for all sessions. Each function raises
InvalidRequestError that names the field and the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

from stream2llm.api.errors import InvalidRequestError

# Ids are for logs and look-ups; the router's are far shorter.
MAX_ID_CHARS = 1024


def check_id(value: str, field: str, *, may_be_empty: bool = True) -> None:
    """Checks a session id."""
    if not value and not may_be_empty:
        raise InvalidRequestError(f"{field} must not be empty", field=field)
    if len(value) > MAX_ID_CHARS:
        raise InvalidRequestError(
            f"{field} has {len(value)} characters; at most {MAX_ID_CHARS} are taken", field=field
        )


def check_token_ids(token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    """Checks that the model has these token ids. There may be none."""
    if not token_ids:
        return
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise InvalidRequestError(
            f"{field} has token id {wrong}; the model's are 0 to {vocab_size - 1}",
            reason="BAD_TOKEN_ID",
            field=field,
        )
