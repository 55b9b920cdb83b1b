"""The model's tokenizer and chat template in a gateway, read once, when they are first needed."""

from __future__ import annotations

import asyncio
import sys

from router.text_input import TextInput
from router.tokenizer import ModelTokenizer
from stream2llm.api.errors import InternalError, InvalidRequestError
from stream2llm.api.requests import ChatPrompt, PlainTemplate
from stream2llm.client.chat_inputs import ChatOptions
from stream2llm.client.inputs import prompt_of
from stream2llm.client.one_shot import PromptTokens
from stream2llm.gateway.requests import AnswerRequest

# A router has taken the prompt: it is short enough.
_MAX_TOKENS = sys.maxsize


class PromptTokenizer:
    """Renders and tokenizes prompts whose router was lost. Call `close` at the end."""

    def __init__(self, tokenizer: SharedTokenizer) -> None:
        self._tokenizer = tokenizer
        self._text: TextInput | None = None

    def tokens_of(self, request: AnswerRequest) -> PromptTokens:
        """What returns the tokens of a request's prompt, once they are needed."""

        async def tokens() -> list[int]:
            prompt = prompt_of(request.prompt_content(), ChatOptions(**request.chat_options()))
            template = prompt if isinstance(prompt, ChatPrompt) else PlainTemplate(prompt)
            text = await self._text_input()
            frame = await text.frame(template, last_tokens=request.truncate_prompt_tokens)
            found: list[int] = frame.prefix.tolist()
            return found

        return tokens

    def close(self) -> None:
        """Waits for work under way."""
        if self._text is not None:
            self._text.close()

    async def _text_input(self) -> TextInput:
        tokenizer = await self._tokenizer.get()
        if self._text is None:
            self._text = TextInput(tokenizer, _MAX_TOKENS)
        return self._text


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
