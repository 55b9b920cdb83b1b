"""What is refused, and what its error names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stream2llm.api.errors import InvalidRequestError, Stream2LLMError


@contextmanager
def refused(
    match: str | None = None,
    *,
    field: str | None = None,
    reason: str | None = None,
    error: type[Stream2LLMError] = InvalidRequestError,
) -> Iterator[pytest.ExceptionInfo[Stream2LLMError]]:
    """The block raises this error, whose message matches; and has that field and reason, if given."""
    with pytest.raises(error, match=match) as caught:
        yield caught
    if field is not None:
        assert caught.value.field == field
    if reason is not None:
        assert caught.value.reason == reason
