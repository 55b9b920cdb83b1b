"""Decides which worker gets a session. Pure.

Where both kinds are there, a session begins at a prefill worker, to go on at a decode worker,
or at a mixed worker, which keeps it: at the one with the fewest sessions of this router. Answers
under way at a mixed worker wait for the steps that compute a new prompt, so a long one rather goes
to a prefill worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stream2llm.serving.settings.worker_spec import PREFILLING, Role


@dataclass(frozen=True, slots=True)
class WorkerView:
    """The properties of a worker that placement considers."""

    worker_id: str
    role: Role
    # False after a failure at transport level, until it answers again.
    usable: bool
    # Sessions of this router at the worker.
    num_sessions: int
    # Those among them whose answers go on there: 0 but for mixed workers.
    num_answering: int = 0


# A prompt that keeps a large GPU busy for some tens of milliseconds counts as long.
_LONG_PROMPT_TOKENS = 2048


def pick(workers: Iterable[WorkerView], role: Role, num_prompt_tokens: int = 0) -> str | None:
    """Returns the least loaded usable worker of a role; None without one.

    `num_prompt_tokens` are known of the session's prompt, which may grow. Among equals a mixed
    worker is taken, from which no KV is transferred, then the first by id. Mixed workers count as
    prefill workers. While no decode worker is usable, those that depend on one are chosen only
    where there is no mixed worker.
    """
    usable = [worker for worker in workers if worker.usable]
    candidates = [worker for worker in usable if serves_as(worker.role, role)]
    if role == "prefill" and not any(worker.role == "decode" for worker in usable):
        candidates = [w for w in candidates if w.role == "mixed"] or candidates
    best = min(
        candidates,
        key=lambda w: (_load(w, num_prompt_tokens), w.role != "mixed", w.worker_id),
        default=None,
    )
    return None if best is None else best.worker_id


def _load(worker: WorkerView, num_prompt_tokens: int) -> float:
    """Its sessions, of which those that the prompt would hold up count up to twice."""
    share = min(num_prompt_tokens / _LONG_PROMPT_TOKENS, 1.0)
    return worker.num_sessions + share * worker.num_answering


def counts_as(role: Role) -> Role:
    """Returns the role that a worker of `role` counts as when a place is looked for."""
    return "prefill" if role in PREFILLING else role


def serves_as(role: Role, wanted: Role) -> bool:
    """Returns whether a worker of `role` can take the place of one of the wanted role."""
    return wanted in (role, counts_as(role))
