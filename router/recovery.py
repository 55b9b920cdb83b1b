"""Decides whether a session that has lost a worker is placed at another one. Pure.

    failure -> cause_of: what was lost; None for failures that another worker would repeat
            -> Recovery.lost: Restart with a pause, or GiveUp with the reason

`placed_prefill.py` and `session_output.py` carry it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from stream2llm.api.errors import Stream2LLMError
from stream2llm.serving.router_spec import RecoveryOptions
from stream2llm.serving.worker_spec import Role

# The second restart waits so long, each further one twice as long as the one before.
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


class Cause(StrEnum):
    """What a session lost; a label of the metrics."""

    PREFILL_LOST = "prefill_lost"
    """Its prefill worker."""
    DECODE_LOST = "decode_lost"
    """Its decode worker, or there was none."""
    KV_LOST = "kv_lost"
    """The KV of its prompt, on the way from prefill to decode."""
    REFUSED = "refused"
    """Its place: the worker drains, or has no room."""


_LOST: dict[Role, Cause] = {"prefill": Cause.PREFILL_LOST, "decode": Cause.DECODE_LOST}
_BY_REASON = {
    "KV_LOST": Cause.KV_LOST,
    "DRAINING": Cause.REFUSED,
    "FULL": Cause.REFUSED,
    "NO_DECODE_WORKER": Cause.DECODE_LOST,
}


class LostWorker(Protocol):
    """One process of a worker; its successor of the same name is another one."""

    @property
    def worker_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call to a worker."""

    error: Stream2LLMError
    role: Role
    # None: there was none.
    worker: LostWorker | None
    # Whether the call may have reached it.
    has_arrived: bool = True

    @property
    def worker_id(self) -> str:
        """Empty without a worker."""
        return "" if self.worker is None else self.worker.worker_id


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


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The session fails."""

    # The limit that is reached; empty: no other worker would help.
    why: str = ""


class Recovery:
    """The losses of one session."""

    def __init__(self, options: RecoveryOptions) -> None:
        self._options = options
        self._dead: set[LostWorker | None] = set()
        # Workers between which KV was lost: where there are others, those are better.
        self.rather_not: set[LostWorker] = set()
        self.num_restarts = 0

    @property
    def num_deaths(self) -> int:
        """Engines that died while they held the session."""
        return len(self._dead)

    def lost(self, failure: Failure, prefill: LostWorker | None = None) -> Restart | GiveUp:
        """Takes one loss; counts a restart where that is the decision.

        `prefill` is the worker that has, or had, the session's KV.
        """
        cause = cause_of(failure)
        if cause is None:
            return GiveUp()
        if cause is Cause.KV_LOST:
            self._avoid(failure.worker, prefill)
        if failure.error.reason == "WORKER_LOST" and failure.has_arrived:
            self._dead.add(failure.worker)
        why = self._limit()
        if why:
            return GiveUp(why)
        self.num_restarts += 1
        return Restart(cause, pause_s(self.num_restarts))

    def _avoid(self, decode: LostWorker | None, prefill: LostWorker | None) -> None:
        """Either may be the cause, or what is between them: first the one without the prompt's KV."""
        suspect = prefill if self.rather_not else decode
        if suspect is not None:
            self.rather_not.add(suspect)

    def _limit(self) -> str:
        options = self._options
        if self.num_restarts >= options.max_restarts:
            return f"the limit is {options.max_restarts} (router.recovery.max_restarts)"
        if self.num_deaths >= options.max_engine_deaths:
            return (
                f"{self.num_deaths} engines died while they held it, so it may be the cause"
                " (router.recovery.max_engine_deaths)"
            )
        return ""

    def no_worker(self, role: Role) -> GiveUp:
        """No worker of the role could be used in time: the restart under way is none."""
        self.num_restarts -= 1
        limit_s = self._options.max_wait_s
        return GiveUp(
            f"no {role} worker could be used within {limit_s:g} s (router.recovery.max_wait_s)"
        )


def pause_s(num_restarts: int) -> float:
    """Seconds before the session is placed again for the `num_restarts`th time; none before the first."""
    if num_restarts <= 1:
        return 0.0
    return min(_FIRST_PAUSE_S * 2.0 ** min(num_restarts - 2, 30), _LONGEST_PAUSE_S)


def final_error(
    failure: Failure, verdict: GiveUp, num_restarts: int, retry_after_s: float
) -> Stream2LLMError:
    """Returns the error for the client: that of the failure, with what was tried."""
    if not verdict.why:
        return failure.error
    tried = f"restarted {num_restarts} times" if num_restarts != 1 else "restarted once"
    more = f"the session was {tried}, and no more: {verdict.why}"
    return extended(failure.error, more, retry_after_s)


def extended(error: Stream2LLMError, more: str, retry_after_s: float | None) -> Stream2LLMError:
    """Returns the same error with more to its message, and another time after which to retry."""
    return type(error)(
        f"{error.message}; {more}",
        reason=error.reason,
        field=error.field,
        retry_after_s=retry_after_s,
    )
