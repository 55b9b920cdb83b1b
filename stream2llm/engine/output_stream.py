"""The outputs of a request as its reader gets them: one by one, also where it lags.

vLLM's own collector merges them then, and overwrites transfer parameters.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine.exceptions import EngineDeadError

from stream2llm.api.errors import UnavailableError


class OutputStream:
    """The outputs of one request, in order and unmerged; vLLM's output processor fills it.

    Its size is limited by the request: a session has one first token and one progress
    per event or interval, an answer at most max_tokens outputs.
    """

    def __init__(self) -> None:
        self._items: asyncio.Queue[RequestOutput | Exception] = asyncio.Queue()
        self.finished = False

    def put(self, item: RequestOutput | Exception) -> None:
        """Adds an output; vLLM's output processor calls this in the event loop."""
        self._items.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        while not self.finished:
            item = await self._items.get()
            if isinstance(item, Exception):
                self.finished = True
                raise engine_error(item) from item
            self.finished = item.finished
            yield item


def engine_error(error: Exception) -> Exception:
    """Returns the error for the client when the engine raises `error`."""
    if isinstance(error, EngineDeadError):
        return UnavailableError("the worker's engine died", reason="WORKER_LOST")
    return error


def only_output(output: RequestOutput) -> CompletionOutput:
    """Returns the one completion of a request (n is always 1 here)."""
    return output.outputs[0]
