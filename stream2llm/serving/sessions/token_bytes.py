"""Token ids as bytes, as routers and workers exchange them: four each, the lowest first. Pure.

A list of 100,000 ids in a protobuf message is 100,000 objects at both ends; as bytes it is one.
"""

from __future__ import annotations

import numpy as np

from stream2llm.api.errors import InvalidRequestError
from stream2llm.serving.sessions.prefix import Tokens

_WIRE = np.dtype("<u4")


def to_bytes(tokens: Tokens) -> bytes:
    """The tokens as bytes."""
    return tokens.astype(_WIRE, copy=False).tobytes()


def num_tokens(data: bytes) -> int:
    """How many tokens there are in bytes of `to_bytes`."""
    return len(data) // _WIRE.itemsize


def token_list(data: bytes, field: str) -> list[int]:
    """The tokens in bytes of `to_bytes`; raises InvalidRequestError for other bytes."""
    if len(data) % _WIRE.itemsize:
        raise InvalidRequestError(
            f"{field} has {len(data)} bytes, which are no whole token ids", field=field
        )
    tokens: list[int] = np.frombuffer(data, _WIRE).tolist()
    return tokens
