"""The live sessions of an engine: vLLM's request and our state of each, and all that follows them.

Every change to a session ends in `touch`, which updates the session table: a step
costs in proportion to what it touches, not to the number of sessions.
"""

from __future__ import annotations

from vllm.v1.request import Request

from prefill_worker.blocks import LiveLedger
from prefill_worker.digest_sampling import DigestSampling
from prefill_worker.offering import Offering
from prefill_worker.progress_reporting import LiveSession, ProgressReporting
from prefill_worker.runner_slots import RunnerSlots
from prefill_worker.session_state import SessionState
from prefill_worker.session_table import SessionTable
from prefill_worker.swapping import Swapping


class LiveSessions:
    """Sessions that have not ended, by request id."""

    def __init__(
        self,
        table: SessionTable,
        ledger: LiveLedger,
        swapping: Swapping,
        offering: Offering,
        digests: DigestSampling,
        progress_reporting: ProgressReporting,
        slots: RunnerSlots,
    ) -> None:
        self.by_id: dict[str, LiveSession] = {}
        self.table = table
        self.ledger = ledger
        self.swapping = swapping
        self.offering = offering
        self.digests = digests
        self.progress_reporting = progress_reporting
        self.slots = slots

    def __len__(self) -> int:
        return len(self.by_id)

    def __getitem__(self, request_id: str) -> LiveSession:
        return self.by_id[request_id]

    def begin(self, request: Request, state: SessionState, num_stable_tokens: int) -> None:
        """Adds a session whose state is in the table."""
        live = LiveSession(request, state)
        self.by_id[request.request_id] = live
        self.offering.spliced(request.request_id, 0, num_stable_tokens)
        self.touch(live)

    def answered(self, live: LiveSession) -> None:
        """The session has sampled a token, which is the next one to compute."""
        if not live.state.is_answering:
            self.table.begin_answer(live.request.request_id)
            self.progress_reporting.forget(live.request.request_id)
        self.touch(live)

    def touch(self, live: LiveSession) -> None:
        """Updates the session table and all that follows the session."""
        request = live.request
        request_id, swapping = request.request_id, self.swapping
        if not live.state.is_answering:  # progress is that of the context
            self.progress_reporting.touch(request_id)
        self.offering.touch(request_id)
        self.digests.touch(request_id, request.num_computed_tokens)
        swapping.drop_computed(request_id, request.num_computed_tokens)
        self.table.update(
            request_id,
            request.num_tokens,
            request.num_computed_tokens,
            self.ledger.num_blocks(request_id),
            host_blocks=swapping.host.next_run(request_id),
            is_loading=swapping.is_loading(request_id),
        )
        if not self.table.has_work(request_id):
            live.state.delay = ""

    def forget(self, request_id: str) -> None:
        """Removes a session that has ended; an unknown one is none any more."""
        if self.by_id.pop(request_id, None) is not None:
            self.table.close(request_id)
            self.progress_reporting.forget(request_id)
            self.offering.forget(request_id)
            self.digests.forget(request_id)
            self.swapping.forget(request_id)
            self.slots.release(request_id)

    def check_integrity(self) -> None:
        """Raises AssertionError unless the table and the host's copies are those of the sessions."""
        self.swapping.check_integrity(set(self.by_id))
        assert self.table.num_sessions == len(self.by_id)
        for request_id, live in self.by_id.items():
            request, view = live.request, self.table.view(request_id)
            held = self.ledger.num_blocks(request_id)
            computed = request.num_computed_tokens
            assert view.is_loading == self.swapping.is_loading(request_id)
            assert (view.host_start, view.host_stop) == self.swapping.host.next_run(request_id)
            assert (view.num_known_tokens, view.num_computed_tokens, view.num_blocks) == (
                request.num_tokens,
                computed,
                held,
            ), (
                f"the session table has {view} of a request with {computed} tokens computed, {held} blocks"
            )
            assert computed <= view.num_target_tokens or not request.num_tokens
