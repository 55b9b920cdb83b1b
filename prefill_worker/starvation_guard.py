"""Starvation guard: a session that has had work for too many steps goes first.

A policy may prefer others for as long as others arrive. So each session's wait is
counted in engine steps that compute something: a wait begins when the session gets new
tokens to compute, and ends when none are left. A wait of `limit_steps` makes the session
*guarded*: in every `GUARDED_TURN`th step it goes before all sessions that are not
guarded, guarded ones in the order in which they became so; and no other session evicts
its KV. In the steps between, the policy's order holds, so that many guarded sessions
slow the others, but never by more than that share. The guard covers what the session
knew at that moment. It ends when that is computed, or when an update discards computed
tokens; then a new wait begins.

The bound that follows, for every policy: from the step in which it gets new tokens
a session has computed what it knows after at most

    limit_steps + GUARDED_TURN * sum over sessions guarded before it, and itself,
                                  of ceil(promised tokens / tokens of a step)

steps in which hand-overs leave room for it, plus GUARDED_TURN and the steps of the
copy for each piece of their KV that is on the host when they are guarded, and for
each gap between two pieces. The reason: in a guarded turn, the first guarded session
gets all of the step's tokens it can use, may evict all others, and is evicted by none.
"""

from __future__ import annotations

from prefill_worker.session_state import SessionState

# Guarded sessions go first in every fourth step.
GUARDED_TURN = 4


class StarvationGuard:
    """Counts the waits in steps, without a clock, and the times that it guards a session."""

    def __init__(self, limit_steps: int) -> None:
        # Number of times that sessions began to be guarded.
        self.num_guarded_in_all = 0
        self._limit_steps = limit_steps
        # Waits in the order in which they began, so that only the oldest have to be
        # checked.
        self._since: dict[str, int] = {}

    def waits(self, request_id: str, step: int) -> None:
        """The session has new tokens to compute; its wait continues, or begins in this step."""
        self._since.setdefault(request_id, step)

    def ends(self, request_id: str) -> None:
        """No new tokens are left, or the session was guarded or has ended."""
        self._since.pop(request_id, None)

    def take_overdue(self, step: int) -> list[str]:
        """Returns sessions that have waited too long, longest first, and ends their waits."""
        overdue = []
        for request_id, since in self._since.items():
            if step - since < self._limit_steps:
                break
            overdue.append(request_id)
        for request_id in overdue:
            del self._since[request_id]
        return overdue

    def begin(self, request_id: str, state: SessionState, promised_tokens: int) -> None:
        """Guards a session until that many of its tokens are computed."""
        self.ends(request_id)
        self.num_guarded_in_all += 1
        state.guard_number = self.num_guarded_in_all
        state.promised_tokens = promised_tokens
