"""Decides which worker gets a session. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stream2llm.serving.settings.worker_spec import Role


@dataclass(frozen=True, slots=True)
class WorkerView:
    """The properties of a worker that placement considers."""

    worker_id: str
    role: Role
    # False after a failure at transport level, until it answers again.
    usable: bool
    # Sessions of this router at the worker.
    num_sessions: int


def pick(workers: Iterable[WorkerView], role: Role) -> str | None:
    """Returns the least loaded usable worker of a role, by id among equals; None without one."""
    candidates = [worker for worker in workers if worker.role == role and worker.usable]
    best = min(candidates, key=lambda w: (w.num_sessions, w.worker_id), default=None)
    return None if best is None else best.worker_id
