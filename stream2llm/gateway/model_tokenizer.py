"""The model's tokenizer and chat template in a gateway, read once, when they are first needed."""

from __future__ import annotations

import asyncio

from router.tokenizer import ModelTokenizer
from stream2llm.api.errors import InternalError, InvalidRequestError


class SharedTokenizer:
    """One tokenizer for all that needs it."""

    def __init__(self, model_path: str) -> None:
        """`model_path` is a directory with the model's tokenizer."""
        self.model_path = model_path
        self._loading = asyncio.Lock()
        self._tokenizer: ModelTokenizer | None = None

    async def get(self) -> ModelTokenizer:
        """Reads it the first time; raises InternalError where that fails."""
        async with self._loading:
            if self._tokenizer is None:
                self._tokenizer = await asyncio.to_thread(_tokenizer, self.model_path)
            return self._tokenizer


def _tokenizer(model_path: str) -> ModelTokenizer:
    try:
        return ModelTokenizer(model_path)
    except InvalidRequestError as error:  # not the client's fault
        raise InternalError(f"the gateway cannot tokenize: {error.message}") from error
