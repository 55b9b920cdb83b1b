"""Which sessions' progress is due, and the outputs of an engine step that carry it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from vllm.v1.engine import EngineCoreOutput
from vllm.v1.request import Request

from prefill_worker.session_state import WIRE_KEY, SessionState


@dataclass(slots=True)
class LiveSession:
    """A session that has not ended: vLLM's request, and our state of it."""

    request: Request
    state: SessionState

    def remember_lost(self, num_kept_tokens: int, hash_block_size: int) -> None:
        """Notes that the session loses its computed KV behind `num_kept_tokens` tokens."""
        request, size = self.request, hash_block_size
        first, last = num_kept_tokens // size, request.num_computed_tokens // size
        self.state.lost_blocks.add(request.block_hashes[first:last])

    def progress(self) -> EngineCoreOutput:
        """Returns an output without tokens that carries the session's progress."""
        request = self.request
        figures = self.state.progress(request.num_tokens, request.num_computed_tokens)
        return EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            kv_transfer_params={WIRE_KEY: figures},
            # vLLM's own events, which would accumulate until the session ends.
            events=request.take_events(),
        )

    def add_final_progress(self, output: EngineCoreOutput) -> None:
        """Adds the last progress to the output that carries the first token."""
        num_prompt_tokens = self.request.num_prompt_tokens
        figures = self.state.progress(num_prompt_tokens, num_prompt_tokens)
        output.kv_transfer_params = {**(output.kv_transfer_params or {}), WIRE_KEY: figures}


class ProgressReporting:
    """Collects the sessions touched since the last step ended."""

    def __init__(self, interval_tokens: int) -> None:
        self._interval_tokens = interval_tokens
        self._touched: set[str] = set()

    def __len__(self) -> int:
        return len(self._touched)

    def touch(self, request_id: str) -> None:
        """The session's figures may have changed."""
        self._touched.add(request_id)

    def forget(self, request_id: str) -> None:
        """The session has ended."""
        self._touched.discard(request_id)

    def take_due(
        self, live: Mapping[str, LiveSession], has_work: Callable[[str], bool]
    ) -> Iterator[tuple[int, EngineCoreOutput]]:
        """Returns the outputs that are due, each with its client index."""
        for request_id in self._touched:
            session = live[request_id]
            state = session.state
            if state.is_worth_reporting(self._interval_tokens, has_work=has_work(request_id)):
                output = session.progress()
                state.mark_reported()
                yield session.request.client_index, output
        self._touched.clear()
