"""Decides whether a session that has lost a worker is placed at another one. Pure.

    failure -> cause_of: what was lost; None for failures that another worker would repeat
            -> Recovery.lost: Restart with a pause, or GiveUp with the reason

A worker that drains is no loss: moving away from it counts towards no limit, because the
process does not get the session a second time, and an operator may drain many.

`placed_prefill.py`, `placed_decode.py` and `session_output.py` carry it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from stream2llm.api.backoff import pause_s
from stream2llm.api.errors import Stream2LLMError, UnavailableError, extended, times
from stream2llm.serving.settings.router_spec import RecoveryOptions
from stream2llm.serving.settings.worker_spec import Role

# A node that ends takes its processes along one after the other within such a time.
_ONE_INCIDENT_S = 5.0


class Cause(StrEnum):
    """What a session lost; a label of the metrics."""

    PREFILL_LOST = "prefill_lost"
    """Its prefill worker."""
    DECODE_LOST = "decode_lost"
    """Its decode worker, or there was none."""
    MIXED_LOST = "mixed_lost"
    """The mixed worker that had all of it."""
    KV_LOST = "kv_lost"
    """The KV of its prompt, on the way from prefill to decode."""
    REFUSED = "refused"
    """Its place: the worker drains, or has no room."""
    ROUTER_LOST = "router_lost"
    """Its former router; the client has brought it here."""


DRAINING = "DRAINING"
_LOST: dict[Role, Cause] = {
    "prefill": Cause.PREFILL_LOST,
    "decode": Cause.DECODE_LOST,
    "mixed": Cause.MIXED_LOST,
}
_BY_REASON = {
    "KV_LOST": Cause.KV_LOST,
    DRAINING: Cause.REFUSED,
    "FULL": Cause.REFUSED,
    "NO_DECODE_WORKER": Cause.DECODE_LOST,
}


class LostWorker(Protocol):
    """One process of a worker; its successor of the same name is another one."""

    @property
    def worker_id(self) -> str: ...

    @property
    def node(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call to a worker."""

    error: Stream2LLMError
    role: Role
    # None: there was none.
    worker: LostWorker | None
    # Whether the worker had said that it has the session.
    was_held: bool = True

    @property
    def worker_id(self) -> str:
        """Empty without a worker."""
        return "" if self.worker is None else self.worker.worker_id

    @property
    def is_drain(self) -> bool:
        """Whether the worker is well, and only sends its sessions away."""
        return self.error.reason == DRAINING


class AnswerLostError(Exception):
    """The call to a worker failed, and with it the KV of an answer under way is gone."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


def drained(worker: LostWorker, role: Role) -> Failure:
    """Returns the failure of a session that leaves a worker before its drain ends it."""
    error = UnavailableError(f"worker {worker.worker_id} is draining", reason=DRAINING)
    return Failure(error, role, worker)


def cause_of(failure: Failure) -> Cause | None:
    """Returns what was lost; None when the failure is not a loss, but the session's or a bug."""
    if failure.error.reason == "WORKER_LOST":
        return _LOST[failure.role]
    return _BY_REASON.get(failure.error.reason)


@dataclass(frozen=True, slots=True)
class Restart:
    """The session is placed again, after a pause."""

    cause: Cause
    pause_s: float
    # Whether it only leaves a worker that drains.
    is_move: bool = False


@dataclass(frozen=True, slots=True)
class _Death:
    """An engine's, as the session noticed it."""

    worker: LostWorker | None
    role: Role
    at_s: float

    def is_of(self, other: _Death) -> bool:
        """Whether both are of one incident: the same engine, or a node with both of the session's.

        Two of one role are two incidents: the session came to the second one because of the first.
        """
        if self.worker is None or other.worker is None or self.worker is other.worker:
            return self.worker is other.worker
        is_soon = abs(self.at_s - other.at_s) <= _ONE_INCIDENT_S
        return is_soon and self.role != other.role and self.worker.node == other.worker.node


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The session fails."""

    # The limit that is reached; empty: no other worker would help.
    why: str = ""
    # Whether the client may bring the session again, here or to another router.
    may_return: bool = True


class Recovery:
    """The losses of one session."""

    def __init__(self, options: RecoveryOptions) -> None:
        self._options = options
        self._deaths: list[_Death] = []
        # Workers between which KV was lost: where there are others, those are better.
        self.rather_not: set[LostWorker] = set()
        # Without moves away from workers that drain.
        self.num_restarts = 0

    @property
    def num_deaths(self) -> int:
        """Incidents in which an engine died that held the session."""
        return len(self._deaths)

    @property
    def may_move(self) -> bool:
        """Whether the session may leave a worker that drains; not where recovery is off."""
        return self._options.max_restarts > 0

    def lost(
        self, failure: Failure, now_s: float, prefill: LostWorker | None = None
    ) -> Restart | GiveUp:
        """Takes one loss; counts a restart where that is the decision.

        `now_s` is the time at which it was noticed, in seconds of one clock; `prefill` is the
        worker that has, or had, the session's KV.
        """
        cause = cause_of(failure)
        if cause is None:
            return GiveUp()
        if failure.is_drain and self.may_move:
            return Restart(cause, 0.0, is_move=True)
        if cause is Cause.KV_LOST:
            self._avoid(failure.worker, prefill)
        if failure.error.reason == "WORKER_LOST" and failure.was_held:
            self._note_death(_Death(failure.worker, failure.role, now_s))
        limit = self._limit()
        if limit is not None:
            return limit
        self.num_restarts += 1
        return Restart(cause, pause_s(self.num_restarts))

    def _avoid(self, decode: LostWorker | None, prefill: LostWorker | None) -> None:
        """Either may be the cause, or what is between them: first the one without the prompt's KV."""
        suspect = prefill if self.rather_not else decode
        if suspect is not None:
            self.rather_not.add(suspect)

    def _note_death(self, death: _Death) -> None:
        if not any(death.is_of(each) for each in self._deaths):
            self._deaths.append(death)

    def _limit(self) -> GiveUp | None:
        options = self._options
        if self.num_deaths >= options.max_engine_deaths:
            why = (
                f"{self.num_deaths} engines died while they held it, so it may be the cause"
                " (router.recovery.max_engine_deaths)"
            )
            return GiveUp(why, may_return=False)
        if self.num_restarts >= options.max_restarts:
            return GiveUp(f"the limit is {options.max_restarts} (router.recovery.max_restarts)")
        return None

    def no_worker(self, role: Role, restart: Restart) -> GiveUp:
        """No worker of the role could be used in time: the restart under way is none."""
        self.num_restarts -= not restart.is_move
        limit_s = self._options.max_wait_s
        return GiveUp(
            f"no {role} worker could be used within {limit_s:g} s (router.recovery.max_wait_s)"
        )


def final_error(
    failure: Failure, verdict: GiveUp, num_restarts: int, retry_after_s: float
) -> Stream2LLMError:
    """Returns the error for the client: that of the failure, with what was tried.

    Without a time after which to retry where the session may be the cause.
    """
    if not verdict.why:
        return failure.error
    more = f"the session was restarted {times(num_restarts)}, and no more: {verdict.why}"
    return extended(failure.error, more, retry_after_s if verdict.may_return else 0)
