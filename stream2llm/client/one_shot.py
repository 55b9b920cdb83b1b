"""The answer to one complete prompt, which goes on at another router when its own is lost.

Generate         the whole request, at the first router that takes it
StreamGenerate   behind a loss: the prompt as the prefix of a session that is sealed at
                 once, with what has come of the answer

A prompt that no session has (`session_of`) goes on as its tokens, if the caller has them. Else
it is asked anew, as long as nothing of its answer has come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from stream2llm.api.call_metadata import Metadata
from stream2llm.api.errors import Stream2LLMError, extended
from stream2llm.api.events import Event, Finished, Progress
from stream2llm.api.v1 import inference_pb2 as pb
from stream2llm.client.connections import Connections
from stream2llm.client.received import Received
from stream2llm.client.recovery import SessionRecovery, is_loss
from stream2llm.client.rpc import END_GRACE_S, RpcFailedError, SessionRpc, ended_early
from stream2llm.client.tries import Tries

_WAITED_FOR = "the answer did not end"
# Returns the tokens of a prompt, as the router has them.
PromptTokens = Callable[[], Awaitable[Sequence[int]]]
_NOT_RESUMED = (
    "its answer had begun, and chat messages, or a prompt of which only the last tokens are used,"
    " cannot be continued at another router"
)


class OneShot:
    """One prompt; iterate `events` once."""

    def __init__(
        self,
        connections: Connections,
        request: pb.GenerateRequest,
        limits: SessionRecovery,
        timeout_s: float | None,
        metadata: Metadata,
        prompt_tokens: PromptTokens | None = None,
    ) -> None:
        """`timeout_s` is for the whole answer, from the first event that is asked for.

        `prompt_tokens` is called behind a loss, where the prompt itself is no prefix.
        """
        self._connections = connections
        self._request = request
        self._session = session_of(request)
        self._prompt_tokens = prompt_tokens
        self._can_go_on = self._session is not None or prompt_tokens is not None
        self._limits = limits
        self._timeout_s = timeout_s
        self._metadata = metadata
        self._received = Received(max(request.sampling.n, 1))
        # By the router that is asked now.
        self._was_admitted = False
        # A router that had taken the prompt was lost.
        self._is_resumed = False
        # Before the present router, which does not know of them where it is asked anew.
        self._restarts_before = 0

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields the events of the answer; raises what ends it before `Finished`."""
        tries = Tries(self._connections.routers, self._limits, self._timeout_s)
        is_kept = self._request.ByteSize() <= self._limits.max_kept_bytes
        while not self._received.is_finished:
            router = tries.next_router()
            self._was_admitted = False
            items = self._at(router, tries)
            try:
                async for event in items:
                    yield event
            except RpcFailedError as failed:
                self._check_resumable(failed.error)
                again = tries.failed(
                    router, failed.error, was_admitted=self._was_admitted, is_kept=is_kept
                )
                if again.is_restart:
                    yield self._restart()
                await tries.pause(again, _WAITED_FOR)
            finally:
                await items.aclose()

    async def _at(self, router: int, tries: Tries) -> AsyncGenerator[Event, None]:
        """The events that one router gives."""
        rpc = self._begin(router, tries.left_s(_WAITED_FOR))
        try:
            event = await self._first_event(rpc, tries)
            self._was_admitted = True
            tries.admitted(router)
            while event is not None:
                event = self._counted(event)
                if self._received.note(event):
                    yield event
                if self._received.is_finished:
                    await _end(rpc)
                    return
                event = await rpc.read(self._timeout_s, lambda: _WAITED_FOR)
            raise ended_early()
        finally:
            rpc.cancel()

    def _check_resumable(self, error: Stream2LLMError) -> None:
        """Raises the loss of a router where no other one can go on."""
        has_begun = self._received.has_answer and not self._can_go_on
        if has_begun and is_loss(error) and self._limits.max_restarts:
            raise extended(error, _NOT_RESUMED, error.retry_after_s) from None

    def _restart(self) -> Event:
        """The router is lost that had the prompt; returns the progress that says so."""
        lost = self._received.lose_router()
        self._is_resumed = self._can_go_on
        self._restarts_before = 0 if self._is_resumed else lost.restarts
        if self._received.accepted is not None:
            self._request.session_id = self._received.accepted.session_id
        return lost

    def _counted(self, event: Event) -> Event:
        """The event with all restarts, those before the present router included."""
        if self._restarts_before and isinstance(event, Progress | Finished):
            return replace(event, restarts=event.restarts + self._restarts_before)
        return event

    def _begin(self, router: int, left_s: float | None) -> SessionRpc:
        stub = self._connections.stub(router)
        if not self._is_resumed:
            call = stub.Generate(self._request, timeout=left_s, metadata=self._metadata)
        else:
            call = stub.StreamGenerate(timeout=left_s, metadata=self._metadata)
        return SessionRpc(call)

    async def _first_event(self, rpc: SessionRpc, tries: Tries) -> Event | None:
        if not self._is_resumed:
            return await rpc.read(self._timeout_s, lambda: _WAITED_FOR)
        async with tries.answer(is_first=False):
            opening = await self._present_opening()
            await rpc.write(pb.StreamGenerateRequest(sequence=1, open=opening))
            await rpc.write(pb.StreamGenerateRequest(sequence=2, seal=pb.SealContext()), last=True)
            await rpc.answered()
        return await rpc.read(self._timeout_s, lambda: _WAITED_FOR)

    async def _present_opening(self) -> pb.OpenSession:
        if self._session is None:
            assert self._prompt_tokens is not None, "without its tokens there is no restart"
            self._session = _session_of_tokens(self._request, await self._prompt_tokens())
        opening = pb.OpenSession()
        opening.CopyFrom(self._session)
        opening.session_id = self._request.session_id
        opening.resumed.CopyFrom(self._received.resumed)
        return opening


async def _end(rpc: SessionRpc) -> None:
    """Lets the router close the RPC behind the answer, which counts, however that ends."""
    with suppress(RpcFailedError, TimeoutError):
        async with asyncio.timeout(END_GRACE_S):
            await rpc.read(None, lambda: _WAITED_FOR)


def session_of(request: pb.GenerateRequest) -> pb.OpenSession | None:
    """The session whose context is the whole prompt; None where there is none.

    That is chat messages, of which a session's template has one with a slot, and a prompt of
    which only the last tokens are used.
    """
    kind = request.WhichOneof("prompt")
    if kind not in ("text", "token_ids") or request.sampling.HasField("truncate_prompt_tokens"):
        return None
    return _session(request, pb.Content(**{kind: getattr(request, kind)}))


def _session_of_tokens(request: pb.GenerateRequest, token_ids: Sequence[int]) -> pb.OpenSession:
    """The session whose context is the prompt as it was used."""
    opening = _session(request, pb.Content(token_ids=pb.TokenIds(ids=token_ids)))
    opening.sampling.ClearField("truncate_prompt_tokens")
    return opening


def _session(request: pb.GenerateRequest, prefix: pb.Content) -> pb.OpenSession:
    opening = pb.OpenSession(
        session_id=request.session_id,
        model=request.model,
        plain=pb.PlainTemplate(prefix=prefix),
        sampling=request.sampling,
        control_tokens=request.control_tokens,
    )
    if request.HasField("ttft_slo_ms"):
        opening.ttft_slo_ms = request.ttft_slo_ms
    return opening
