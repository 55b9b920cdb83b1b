"""The JSON in the body of a request to the controller: read within limits, and checked."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from stream2llm.api.errors import InvalidRequestError

# A policy request needs about fifty bytes.
MAX_BODY_BYTES = 64 * 1024
_BODY_LIMIT_S = 10.0
# A day.
MAX_SECONDS = 86_400


async def body_of(request: web.Request) -> bytes:
    """Returns the whole body; raises InvalidRequestError if it is too long, or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_LIMIT_S):
            async for part in request.content.iter_any():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise InvalidRequestError(
                        f"the body is longer than {MAX_BODY_BYTES} bytes",
                        reason="MESSAGE_TOO_LARGE",
                    )
    except TimeoutError:
        raise InvalidRequestError(
            f"the body did not arrive within {_BODY_LIMIT_S:g} s", reason="INPUT_IDLE"
        ) from None
    return bytes(body)


def seconds_in(body: dict[str, Any], field: str) -> float | None:
    """Returns the seconds under `field`, None without it; raises InvalidRequestError."""
    seconds = body.get(field)
    if seconds is None:
        return None
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= MAX_SECONDS:
        raise InvalidRequestError(f"{field} must be a number from 0 to {MAX_SECONDS}", field=field)
    return float(seconds)


def flag_in(body: dict[str, Any], field: str) -> bool:
    """Returns the flag under `field`, false without it; raises InvalidRequestError."""
    flag = body.get(field, False)
    if not isinstance(flag, bool):
        raise InvalidRequestError(f"{field} must be true or false", field=field)
    return flag


def texts_in(body: dict[str, Any], field: str) -> list[str]:
    """Returns the texts under `field`, none without it; raises InvalidRequestError."""
    texts = body.get(field, [])
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise InvalidRequestError(f"{field} must be a list of strings", field=field)
    return texts


def object_in(body: bytes, field: str, example: str) -> dict[str, Any]:
    """Returns the object that is UTF-8 JSON in a body, whatever its Content-Type.

    Raises InvalidRequestError with `field` and `example`.
    """
    try:
        value = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is not UTF-8: {error}", field=field) from error
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"the body must be JSON like {example}", field=field)
    return value


def text_in(body: dict[str, Any], field: str) -> str | None:
    """Returns the text under `field`, None without it; raises InvalidRequestError."""
    text = body.get(field)
    if text is not None and not isinstance(text, str):
        raise InvalidRequestError(f"{field} must be a string", field=field)
    return text
