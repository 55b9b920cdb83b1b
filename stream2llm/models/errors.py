"""The error of everything that finds or fetches models."""

from __future__ import annotations

from stream2llm.api.errors import Stream2LLMError


class ModelStoreError(Stream2LLMError):
    """The model is not on this machine, or could not be fetched; the message says what to do."""

    default_reason = "MODEL_UNAVAILABLE"
