"""Orders to compile the grammar of a structured output, from the front end.

An order is a request with no other purpose: it makes the engine compile a grammar before
a token of the session is there, and says whether that can be. The grammar stays in the
backend's cache, where the session's own request finds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from vllm import SamplingParams

from stream2llm.api.errors import InvalidRequestError
from stream2llm.api.sampling import SamplingParameters
from stream2llm.api.structured_output import StructuredOutput, refused
from stream2llm.engine.grammar_state import MAX_REASON_CHARS, ORDER_KEY
from stream2llm.engine.output_stream import OutputStream, only_output
from stream2llm.engine.vllm_sampling import raise_failure, to_vllm

# A request needs a token; this one is never computed.
_NO_PROMPT = (0,)


class OrderingEngine(Protocol):
    """The methods of `Engine` that an order uses."""

    async def build_request(
        self, request_id: str, prompt_token_ids: list[int], params: SamplingParams
    ) -> Any:
        """Builds a request; raises InvalidRequestError for one that vLLM refuses."""

    async def submit(self, request: Any) -> OutputStream:
        """Starts a request and returns its outputs."""

    async def abort(self, request_id: str) -> None:
        """Ends a request."""


class GrammarOrder:
    """One order; `on_compiled(backend, seconds)` is called when the engine has compiled it."""

    def __init__(
        self,
        engine: OrderingEngine,
        request_id: str,
        output: StructuredOutput,
        on_compiled: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        self._engine = engine
        self._on_compiled = on_compiled
        self._request_id = request_id
        self._output = output
        self._stream: OutputStream | None = None

    async def begin(self) -> None:
        """Begins to compile; raises InvalidRequestError for what vLLM does not take.

        vLLM parses the constraint here, without the vocabulary.
        """
        extra_args = {ORDER_KEY: True}
        sampling = SamplingParameters(structured_output=self._output)
        params = to_vllm(sampling, max_tokens=1, seed=None, extra_args=extra_args)
        try:
            request = await self._engine.build_request(self._request_id, list(_NO_PROMPT), params)
        except InvalidRequestError as error:
            raise refused(f"cannot be compiled: {_why(error)}") from error
        self._stream = await self._engine.submit(request)

    async def compiled(self) -> None:
        """Returns when it is compiled; raises InvalidRequestError when it cannot be.

        Cancelled, it is no longer awaited; the engine compiles it all the same.
        """
        assert self._stream is not None, "the order has not begun"
        try:
            async for output in self._stream:
                raise_failure(only_output(output))
                figures = output.kv_transfer_params or {}
                self._on_compiled(figures["backend"], figures["compile_s"])
        finally:
            if not self._stream.finished:
                await asyncio.shield(self._engine.abort(self._request_id))


def _why(error: BaseException) -> str:
    """Returns the messages of an error and its causes; vLLM's own may only say that it is invalid."""
    messages: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        if not any(str(cause) in each for each in messages):
            messages.append(str(cause))
        cause = cause.__cause__
    return ": ".join(messages)[:MAX_REASON_CHARS]
